"""What does a candidate's recall on synthetic tasks say of a long training, beside what a short training says?

    .venv/bin/python benchmarks/recall_filter.py --directory DIR [--config configs/h200-proxy.yaml] [--width 96]
        [--designs NAME=NOTATION ...] [--recall-steps 60 240] [--longer 8] [--against RECORD] [--output FILE]
        [--set OVERRIDE ...]

Every design gets a recall score per number of steps, the recipe's short training (`search`) and one that is `--longer`
times as long. Of the long one's model: the validation loss, recall of pairs in text (MQAR), and by how many nats it
predicts a text better at its second reading, which is above zero long before MQAR is. `rankings` has Spearman's
correlation of each cheap measure with each of those, signed so that 1 is agreement. `--against` is the record of an
experiment over designs of the same names (and blocks, with any repeats): its losses are ranked against too. DIR keeps
the prepared text. The last line of stdout is the record without its designs.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from flashslm.benchmarking.options import (
    COUNT,
    INPUT,
    NEW_DIRECTORY,
    OUTPUT,
    OVERRIDE,
    OptionType,
    before_work,
    script_parser,
)
from flashslm.benchmarking.record import read_record, result_name
from flashslm.benchmarking.short_training import OpenedRecipe, open_recipe, train_shortly
from flashslm.config import RunConfig
from flashslm.data.loader import TokenLoader
from flashslm.data.prepare import prepare_once
from flashslm.evaluation.associative_recall import PAIRS, evaluate_associative_recall
from flashslm.infra.state_files import require_writable, write_whole
from flashslm.models.accounting import parameters
from flashslm.models.architecture import build_architecture
from flashslm.models.hybrid import HybridLM
from flashslm.search.recall_score import RecallTest
from flashslm.search.space import parse_design
from flashslm.statistics import rank_correlation

ROOT = Path(__file__).parents[1]
SUBJECT = "recall-filter"
DESIGNS = (  # configs/experiments/proxy-quality.yaml's, with fewer repeats
    "a=(AF)x3",
    "d=(DF)x3",
    "m=(MF)x3",
    "d-only=(D)x6",
    "m-only=(M)x6",
    "dm=(DFMF)x2",
    "da=(DFAF)x2",
    "am=(AFMF)x2",
    "dmf=(DMF)x2",
    "amf=(AMF)x2",
    "ddf=(D DF)x2",
    "dff=(DFF)x2",
    "paper=DFMF AFMF | DFMF",
    "paper-parameters=MFAFAF D | MF D",
)
GAIN = "second_reading_gain_nats"
TEXTS = 64  # that are read twice, and of MQAR
LOWER_IS_BETTER = ("loss_nats",)  # ends of the names of such measures


def _design(text: str) -> str:
    name, separator, notation = text.partition("=")
    if not separator or not name.strip():
        raise ValueError(f"'{text}' has no name: give NAME=NOTATION, such as 'dm=(DFMF)x2'")
    parse_design(notation)
    return text


DESIGN = OptionType(_design)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = make_parser()
    given = parser.parse_args(arguments)
    with before_work(parser):
        opened = open_recipe(given.config, given.overrides)
        against = losses_of(given.against) if given.against else {}
        recipe = opened.recipe
        require_buildable(given.designs, given.width, recipe)
        output = given.output or ROOT / "benchmarks" / "results" / f"{result_name(SUBJECT, opened.device)}.json"
        require_writable(output)
        dataset = prepare_once(recipe.data, recipe.seed, given.directory)
    record: dict[str, Any] = {"subject": SUBJECT} | opened.facts
    record |= {name: getattr(recipe, name).model_dump(mode="json") for name in ("data", "model", "search")}
    record |= {"width": given.width, "longer": given.longer, "seed": recipe.seed, "designs": {}}
    trials = Trials(opened, dataset, given.width)
    settings = (recipe.search.recall_length, opened.device, recipe.profiling.threads, recipe.seed)
    tests = [RecallTest(steps, *settings) for steps in given.recall_steps]
    for name, _, notation in (text.partition("=") for text in given.designs):
        scores = [test.score(notation) for test in tests]
        design = {"notation": notation, "recall": [{"by_task": s.by_task, "time_s": s.time_s} for s in scores]}
        design |= {"short": trials.run(notation, 1), "long": trials.run(notation, given.longer)}
        record["designs"][name] = design | {"against": against.get(name, {})}
        record["rankings"] = list(rankings(record["designs"], given.recall_steps))
        output.parent.mkdir(parents=True, exist_ok=True)
        write_whole(output, json.dumps(record) + "\n")
    print(json.dumps({key: value for key, value in record.items() if key != "designs"}))
    return 0


def make_parser() -> argparse.ArgumentParser:
    parser = script_parser(__doc__)
    parser.add_argument("--directory", type=NEW_DIRECTORY, required=True, help="where the prepared text is kept")
    parser.add_argument("--config", type=INPUT, default=ROOT / "configs" / "h200-proxy.yaml")
    parser.add_argument("--width", type=COUNT, default=96)
    parser.add_argument("--designs", nargs="+", type=DESIGN, default=DESIGNS, metavar="NAME=NOTATION")
    parser.add_argument("--recall-steps", type=COUNT, nargs="+", default=[60, 240])
    parser.add_argument("--longer", type=COUNT, default=8, help="times the recipe's search.steps")
    parser.add_argument("--against", type=INPUT, help="an experiment's record")
    parser.add_argument("--output", type=OUTPUT, help=f"default: benchmarks/results/{SUBJECT}_….json")
    parser.add_argument(
        "--set", dest="overrides", nargs="+", type=OVERRIDE, default=[], help="of the recipe, such as search.steps=50"
    )
    return parser


def require_buildable(designs: Sequence[str], width: int, recipe: RunConfig) -> None:
    """ValueError where a design cannot be built at the width, or two have one name."""
    names = [text.partition("=")[0] for text in designs]
    if len({*names}) < len(names):
        raise ValueError(f"--designs: two of {', '.join(names)} have one name")
    for text in designs:
        operators = parse_design(text.partition("=")[2]).operators
        build_architecture(operators, width, recipe.model, recipe.data.vocab_size)


class Trials:
    """Trainings of designs with the recipe's text, sizes and proxy."""

    def __init__(self, opened: OpenedRecipe, dataset: Path, width: int) -> None:
        self.opened, self.dataset, self.width = opened, dataset, width
        self.vocab_size = json.loads((dataset / "dataset.json").read_text(encoding="utf-8"))["vocab_size"]

    def run(self, notation: str, longer: int) -> dict[str, float]:
        """What came of a training of so many times the recipe's steps."""
        recipe, operators = self.opened.recipe, parse_design(notation).operators
        architecture = build_architecture(operators, self.width, recipe.model, self.vocab_size)
        section = recipe.search.model_copy(update={"steps": longer * recipe.search.steps})
        model, outcome = train_shortly(architecture, self.opened, section, self.dataset)
        length = recipe.search.sequence_length
        loader = TokenLoader(self.dataset, "test", length, recipe.search.batch_size, recipe.seed)
        by_depth, _ = evaluate_associative_recall(model, loader, max(length, 6 * PAIRS), TEXTS, recipe.seed)
        return {
            "parameters": parameters(architecture)["total"],
            "loss_nats": outcome.validation_loss_nats,
            "train_time_s": outcome.train_time_s,
            "mqar": sum(by_depth) / len(by_depth),
            GAIN: second_reading_gain_nats(model, loader.tokens(0, TEXTS * (length // 2))),
        }


@torch.no_grad()
def second_reading_gain_nats(model: HybridLM, tokens_N: torch.Tensor) -> float:
    """By how much less surprising TEXTS texts are at their second reading in a row; their first tokens do not count."""
    once_ST = tokens_N.view(TEXTS, -1).to(next(model.parameters()).device)
    twice_ST = once_ST.repeat(1, 2)
    logits_STV = model.logits(model(twice_ST[:, :-1])).float()
    nats_ST = torch.nn.functional.cross_entropy(logits_STV.mT, twice_ST[:, 1:], reduction="none")
    size = once_ST.shape[1]
    return float(nats_ST[:, : size - 1].mean() - nats_ST[:, size:].mean())


def losses_of(experiment: Path) -> dict[str, dict[str, float]]:
    """Mean losses of a record, by model and "<steps> steps loss_nats", of those budgets that all models have."""
    rows = read_record(experiment, "means")["means"]
    models = {row["model"] for row in rows}
    found: dict[str, dict[str, float]] = {model: {} for model in models}
    for steps in sorted({row["steps"] for row in rows}):
        of_budget = {row["model"]: row["metrics"]["loss_nats"]["mean"] for row in rows if row["steps"] == steps}
        if of_budget.keys() == models:
            for model, loss_nats in of_budget.items():
                found[model][f"{steps} steps loss_nats"] = loss_nats
    return found


def rankings(designs: dict[str, Any], recall_steps: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Spearman's correlation of each cheap measure with each expensive one, over the designs so far."""
    rows = list(designs.values())
    cheap = {
        f"recall_accuracy after {steps} steps": [sum(row["recall"][i]["by_task"].values()) for row in rows]
        for i, steps in enumerate(recall_steps)
    }
    cheap["short loss_nats"] = [row["short"]["loss_nats"] for row in rows]
    measured = {f"long {name}": [row["long"][name] for row in rows] for name in ("loss_nats", "mqar", GAIN)}
    measured |= {f"against {name}": [row["against"].get(name) for row in rows] for name in rows[0]["against"]}
    for first, a in cheap.items():
        for second, b in measured.items():
            if len({*a}) > 1 and len({*b}) > 1 and None not in b:
                found = rank_correlation(_higher_is_better(first, a), _higher_is_better(second, b))
                yield {"of": first, "with": second} | found._asdict()


def _higher_is_better(name: str, values: list[float]) -> list[float]:
    return [-value for value in values] if name.endswith(LOWER_IS_BETTER) else values


if __name__ == "__main__":
    sys.exit(main())
