"""Train a proxy and its dense peer on the same text, and compare them on evaluation sets item by item.

    .venv/bin/python benchmarks/peers.py --directory DIR --text 'DIR/*.parquet' --task-data DIR [--tasks piqa ...]
        [--limit N] [--config configs/experiments/peers.yaml] [--max-minutes M] [--output FILE] [--set OVERRIDE ...]

The models are the experiment's, made equal as its `match` says: by the measured latency per token, or by parameters.
Each is trained for `training.steps` with each of `training.seeds`, exported, and evaluated as exported: perplexity on
the text's test split and the harness's tasks, whose sets are read from --task-data (docs/evaluation.md: its layout)
and kept out of the training text. --directory keeps the prepared text, exports and evaluations: a second call goes on
where the first one ended (exit code 3: cut off, call again).

The record has every metric of each model with its standard error, and per seed the difference to the baseline paired
by item, with its 95 % interval; with several seeds also Student's interval over them. It is rewritten after each
model; the last line of stdout is the record without recipe. Intervals over items say nothing of other seeds.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from flashslm.benchmarking.options import (
    COUNT_OR_NONE,
    DIRECTORY,
    INPUT,
    MINUTES,
    NEW_DIRECTORY,
    OUTPUT,
    OVERRIDE,
    TEXT,
    before_work,
    script_parser,
)
from flashslm.benchmarking.record import record_facts, result_name, write_record
from flashslm.config import digest
from flashslm.config.experiment import ExperimentRecipe
from flashslm.config.file import load_as
from flashslm.data.prepare import prepare_once
from flashslm.evaluation import items as metric_items
from flashslm.evaluation.items import ITEMS_FILE
from flashslm.experiments.checks import problems
from flashslm.experiments.experiment import Experiment, manifest_of
from flashslm.experiments.matching import MatchedModel
from flashslm.export.huggingface import export_huggingface
from flashslm.hardware import pick_device
from flashslm.infra.state_files import require_writable, write_whole
from flashslm.ops import kernels
from flashslm.reporting.comparison import comparison_rows
from flashslm.statistics import judge, t_difference
from flashslm.steps.compare_models import compare_models, evaluate_candidate, finite
from flashslm.steps.named_model import NamedModel
from flashslm.steps.recipe_checks import task_problems
from flashslm.training.new_model import new_model
from flashslm.training.spec import FromArchitecture, TrainSpec
from flashslm.training.trainer import train

ROOT = Path(__file__).parents[1]
SUBJECT = "peers"
CUT_OFF = 3
TASKS = (
    *("piqa", "arc_easy", "arc_challenge", "hellaswag", "winogrande", "openbookqa", "social_iqa", "boolq", "copa"),
    *("commonsense_qa", "truthfulqa_mc2", "lambada_openai", "wikitext"),
)
TRAINING_FILE = "training.json"


class Peer(NamedTuple):
    """One training: a model of the experiment with a seed."""

    model: MatchedModel
    seed: int

    def place(self, recipe: ExperimentRecipe, dataset: Path, directory: Path) -> Path:
        """A directory of its own for all that decides the numbers, but the code."""
        sections = recipe.model_dump(mode="json", include={"kernels", "training", "evaluation", "export", "seed"})
        sections["training"] |= {"seeds": [self.seed]}
        work = sections | {"dataset": dataset.name, "architecture": self.model.architecture.digest}
        return directory / f"{self.model.name}-seed-{self.seed}-{digest(work)[:12]}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = make_parser()
    given = parser.parse_args(arguments)
    until_s = time.monotonic() + 60 * given.max_minutes
    with before_work(parser):
        recipe = load_as(ExperimentRecipe, given.config, _overrides(given), peers_problems)
        device = pick_device(recipe.profiling.training_device)
        output = given.output or ROOT / "benchmarks" / "results" / f"{result_name(SUBJECT, device)}.json"
        require_writable(output)
        dataset = prepare_once(recipe.data, recipe.seed, given.directory)
    kernels.configure(recipe.kernels)
    models = Experiment(recipe, given.directory).models(manifest_of(dataset))
    peers = [Peer(model, seed) for seed, model in product(recipe.training.seeds, models)]
    judged: list[tuple[Peer, NamedModel]] = []
    record = begin(recipe, models, len(peers))
    for peer in peers:
        place = peer.place(recipe, dataset, given.directory)
        if time.monotonic() > until_s and not (place / ITEMS_FILE).is_file():
            break
        judged.append((peer, judge_peer(peer, recipe, dataset, place)))
        record |= summary(judged, recipe.experiment.baseline)
        write_record(output, finite(record))
    print(json.dumps(finite({key: value for key, value in record.items() if key != "recipe"})))
    return 0 if len(judged) == len(peers) else CUT_OFF


def peers_problems(recipe: ExperimentRecipe) -> list[str]:
    """What keeps the recipe's models from being trained, or judged by its tasks."""
    return [*problems(recipe), *task_problems(recipe.evaluation)]


def begin(recipe: ExperimentRecipe, models: Sequence[MatchedModel], planned: int) -> dict[str, Any]:
    """What is known before the first training."""
    facts = record_facts(pick_device(recipe.profiling.training_device))
    return {
        "subject": SUBJECT,
        **facts,
        "recipe": recipe.model_dump(mode="json"),
        "tokens_per_training": recipe.training.tokens,
        "trainings_planned": planned,
        "models": [model.model_dump(mode="json") for model in models],
    }


def judge_peer(peer: Peer, recipe: ExperimentRecipe, dataset: Path, directory: Path) -> NamedModel:
    """Train, export and evaluate, as far as an earlier call has not."""
    training, items = directory / TRAINING_FILE, directory / ITEMS_FILE
    if not training.is_file():
        write_whole(training, json.dumps(trained(peer, recipe, dataset, directory)))
    facts = json.loads(training.read_text(encoding="utf-8"))
    name = f"{peer.model.name}, seed {peer.seed}"
    if items.is_file():
        return NamedModel(name, facts, metric_items.load(json.loads(items.read_text(encoding="utf-8"))))
    started = time.perf_counter()
    found = evaluate_candidate(NamedModel(name, facts, model_directory=lambda: directory), recipe, dataset)
    found.facts["evaluation_s"] = time.perf_counter() - started
    write_whole(training, json.dumps(found.facts))
    write_whole(items, json.dumps(metric_items.dump(found.items or {})))
    return found


def trained(peer: Peer, recipe: ExperimentRecipe, dataset: Path, directory: Path) -> dict[str, Any]:
    """Facts of one training, whose model is then exported into `directory`."""
    architecture, training = peer.model.architecture, recipe.training
    device = pick_device(recipe.profiling.training_device)
    start = FromArchitecture(architecture=architecture, output_init=recipe.model.output_init)
    spec = TrainSpec(
        start=start,
        dataset=manifest_of(dataset),
        training=training,
        weight_norm=training.weight_norm[0] == "on",
        seed=peer.seed,
    )
    model = new_model(start, device, peer.seed)
    outcome = train(spec, model, lambda _: dataset)
    export_huggingface(model, dataset / "tokenizer", directory / "huggingface", recipe.export)
    known = {"validation_loss_nats", "train_loss_nats", "train_time_s", "tokens_per_s", "tokens_seen"}
    return outcome.model_dump(include=known)


def summary(judged: Sequence[tuple[Peer, NamedModel]], baseline: str) -> dict[str, Any]:
    """Every model's metrics, and the differences to the baseline of the same seed."""
    trainings = [
        {"model": p.model.name, "seed": p.seed, "facts": m.facts, "metrics": metric_items.numbers(m.items or {})}
        for p, m in judged
    ]
    differences = list(_differences(judged, baseline))
    return {"trainings": trainings, "differences": differences, "over_seeds": list(over_seeds(differences))}


def _differences(judged: Sequence[tuple[Peer, NamedModel]], baseline: str) -> Iterator[dict[str, Any]]:
    bases = {peer.seed: found for peer, found in judged if peer.model.name == baseline}
    for peer, model in judged:
        if peer.model.name != baseline and peer.seed in bases:
            comparison = compare_models(bases[peer.seed], model).model_dump(mode="json")
            shown = {row["metric"]: row for row in comparison_rows(comparison)}
            for row in comparison["rows"]:
                where = {"model": peer.model.name, "baseline": baseline, "seed": peer.seed, "metric": row["metric"]}
                values = {"value": row["challenger"], "baseline_value": row["champion"]}
                ends = {end: None if row[end] is None else row[end] - row["champion"] for end in ("low", "high")}
                known = {key: row[key] for key in ("p_value", "items", "method", "higher_is_better")}
                found = {"difference": row["challenger"] - row["champion"], **ends, **known}
                yield where | values | found | {"is": shown[row["metric"]]["the second is"]}


def over_seeds(differences: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The mean difference of each model and metric over two seeds and more, with Student's interval."""
    for model, metric in dict.fromkeys((row["model"], row["metric"]) for row in differences):
        rows = [row for row in differences if (row["model"], row["metric"]) == (model, metric)]
        if len(rows) > 1:
            found = t_difference([row["difference"] for row in rows])
            outcome = judge(found.low, found.high, higher_is_better=rows[0]["higher_is_better"])
            ends = {"difference": found.value, "low": found.low, "high": found.high, "p_value": found.p_value}
            yield {"model": model, "metric": metric, "seeds": len(rows)} | ends | {"is": outcome}


def _overrides(given: argparse.Namespace) -> list[str]:
    """What the options say of the recipe; --set comes last."""
    return [
        f"data.paths=[{', '.join(given.text)}]",
        f"evaluation.task_data={given.task_data}",
        f"evaluation.lm_eval_tasks=[{', '.join(given.tasks)}]",
        f"evaluation.lm_eval_limit={given.limit}",
        *given.overrides,
    ]


def make_parser() -> argparse.ArgumentParser:
    parser = script_parser(__doc__)
    parser.add_argument("--directory", type=NEW_DIRECTORY, required=True, help="keeps text, exports and evaluations")
    parser.add_argument("--text", nargs="+", type=TEXT, required=True, help="files of text, or patterns")
    parser.add_argument("--task-data", type=DIRECTORY, required=True, help="directory of evaluation sets")
    parser.add_argument("--tasks", nargs="+", type=TEXT, default=list(TASKS))
    parser.add_argument("--limit", type=COUNT_OR_NONE, default=0, help="first items of each task; 0: all")
    parser.add_argument("--config", type=INPUT, default=ROOT / "configs" / "experiments" / f"{SUBJECT}.yaml")
    parser.add_argument("--max-minutes", type=MINUTES, default=math.inf, help="no training begins later")
    parser.add_argument("--output", type=OUTPUT, help=f"default: benchmarks/results/{SUBJECT}_….json")
    parser.add_argument(
        "--set", dest="overrides", nargs="+", type=OVERRIDE, default=[], help="such as training.steps=200"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
