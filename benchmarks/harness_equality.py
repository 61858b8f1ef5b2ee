"""Check on real sets that the harness gets the same digits from this project's adapter as from its own hf model.

    python benchmarks/harness_equality.py --task-data DIR [--export DIR] [--tasks piqa arc_easy ...] [--limit 50]
                                          [--limits hellaswag=2000 ...] [--output FILE]

The model is an export's (`runs/latest/export` after `make demo`: a trained one), without --export a small one with
random weights. Both evaluate it in fp32 on the first `limit` items of each task (0: all; --limits says otherwise for
single tasks), whose sets are read from DIR (docs/evaluation.md: its layout). Rolling tasks are run with hf's
`add_bos_token=False`: else hf also predicts the token that the tokenizer puts before a page, which is not part of it.

Compared are every metric, every item's decision (the choice with the highest log-likelihood, whether a continuation is
the greedy one, what was generated, the item's accuracies) and every log-likelihood. Writes after each task
benchmarks/results/harness-equality_<device>_<date>.json; the last line of stdout is that record. The exit code is 1
where a decision differs, or a number by more than its tolerance.
"""

import argparse
import importlib
import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from flashslm.benchmarking.options import (
    COUNT,
    COUNT_OR_NONE,
    DIRECTORY,
    OPERATORS,
    OUTPUT,
    TEXT,
    OptionType,
    before_work,
    script_parser,
)
from flashslm.benchmarking.record import record_facts, result_name, write_record
from flashslm.config import EvaluationConfig, ExportConfig, ModelConfig
from flashslm.data.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from flashslm.evaluation.harness import Asked, harness_outcome
from flashslm.evaluation.lm_eval_adapter import HybridLMAdapter
from flashslm.evaluation.task_data import SUFFIXES, read_rows
from flashslm.evaluation.task_metrics import is_metric
from flashslm.evaluation.task_results import task_results
from flashslm.export.huggingface import export_huggingface
from flashslm.export.importing import load_export
from flashslm.hardware import pick_device
from flashslm.infra.state_files import require_writable
from flashslm.models.accounting import parameters
from flashslm.models.architecture import build_architecture
from flashslm.models.hybrid import HybridLM
from flashslm.steps.recipe_checks import task_problems

RESULTS = Path(__file__).parent / "results"
TASKS = ("piqa", "arc_easy", "winogrande", "hellaswag", "openbookqa", "social_iqa", "lambada_openai")
VOCABULARY = 2048
SPREAD = 20.0  # of the embedding, so that choices differ by more than rounding
RELATIVE_TOLERANCE = 1e-5  # of log-likelihoods, and of metrics that are not shares of items
ROLLING = "loglikelihood_rolling"

Outcome = dict[str, Any]
Samples = list[dict[str, Any]]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = make_parser()
    given = parser.parse_args(arguments)
    given.limits = dict(given.limits)
    device = pick_device("auto")
    with before_work(parser):
        output = require_writable(given.output or RESULTS / f"{result_name('harness-equality', device)}.json")
        require_usable(given)
    facts = record_facts(device)
    record: dict[str, Any] = {"subject": "harness equality", **facts, "dtype": "float32"}
    with tempfile.TemporaryDirectory() as directory:
        exported = given.export / "huggingface" if given.export else export_random_model(given, Path(directory))
        model = load_export(exported).to(torch.float32).to(device).eval()
        ours, hf = HybridLMAdapter(model, load_tokenizer(exported)), hf_model(exported, given.hf_batch)
        record["model"] = model_facts(model, given.export)
        record["tasks"] = []
        for task in given.tasks:
            limit = given.limits.get(task, given.limit) or None
            record["tasks"].append(compare_task(ours, hf, Asked([task], limit, task_data=str(given.task_data))))
            write_record(output, record)
    print(json.dumps(record))
    return 0 if all(task["is_equal"] for task in record["tasks"]) else 1


def require_usable(given: argparse.Namespace) -> None:
    """ValueError or ImportError for tasks, limits or an export that cannot be used, or a harness that is absent."""
    importlib.import_module("lm_eval")
    asked = EvaluationConfig(lm_eval_tasks=tuple(given.tasks), task_data=str(given.task_data))
    if problems := task_problems(asked):
        raise ValueError("; ".join(problems))
    if others := sorted(given.limits.keys() - set(given.tasks)):
        raise ValueError(f"--limits names {', '.join(others)}, not among --tasks {' '.join(given.tasks)}")
    if given.export and not (given.export / "huggingface").is_dir():
        raise ValueError(
            f"--export {given.export}: it holds no directory huggingface; give one such as runs/latest/export"
        )


def compare_task(ours: HybridLMAdapter, hf: Any, asked: Asked) -> dict[str, Any]:
    """One task by both models."""
    mine = harness_outcome(ours, asked)
    hf.add_bos_token = False if _is_rolling(mine) else None
    found = compare_outcomes(mine, harness_outcome(hf, asked))
    return {"task": asked.tasks[0], "limit": asked.limit, **found}


def compare_outcomes(mine: Outcome, theirs: Outcome) -> dict[str, Any]:
    """What the harness returned for the same task twice: items, metrics, and whether all of it `is_equal`."""
    (task,) = mine["samples"]
    shares = _share_names(mine["samples"][task])
    items = compare_items(mine["samples"][task], theirs["samples"][task], shares)
    metrics = compare_metrics(task_results(mine)[task], task_results(theirs)[task], shares)
    is_equal = items["same_decisions"] == items["items"] and items["nats_within_tolerance"]
    is_equal = is_equal and all(metric["is_same"] for metric in metrics.values())
    return {**items, "metrics": metrics, "is_equal": is_equal}


def compare_metrics(ours: dict[str, float], hf: dict[str, float], shares: set[str]) -> dict[str, dict[str, Any]]:
    """Shares of items to the last digit, other metrics to rounding."""
    found = {}
    for name, value in ours.items():
        if is_metric(name):
            other, tolerance = hf.get(name), 0.0 if name in shares else RELATIVE_TOLERANCE
            is_same = other is not None and math.isclose(value, other, rel_tol=tolerance)
            found[name] = {"ours": value, "hf": other, "is_same": is_same}
    return found


def compare_items(mine: Samples, theirs: Samples, shares: set[str]) -> dict[str, Any]:
    """Decisions and log-likelihoods item by item."""
    pairs = list(zip(*(sorted(s, key=lambda x: (x["doc_id"], x["filter"])) for s in (mine, theirs)), strict=True))
    if any(a["doc_hash"] != b["doc_hash"] for a, b in pairs):
        raise RuntimeError("the two models were given different items")
    nats = [found for a, b in pairs for found in zip(_nats(a), _nats(b), strict=True)]
    relative = [abs(a - b) / max(abs(b), 1.0) for a, b in nats]
    return {
        "items": len(pairs),
        "same_decisions": sum(_decisions(a, shares) == _decisions(b, shares) for a, b in pairs),
        "log_likelihoods": len(nats),
        "largest_difference_nats": max((abs(a - b) for a, b in nats), default=0.0),
        "largest_relative_difference": max(relative, default=0.0),
        "nats_within_tolerance": all(difference <= RELATIVE_TOLERANCE for difference in relative),
    }


def _is_rolling(outcome: Outcome) -> bool:
    return any(config["output_type"] == ROLLING for config in outcome["configs"].values())


def _nats(sample: dict[str, Any]) -> list[float]:
    """The log-likelihoods of an item's continuations, or of its whole text; none of a generated text."""
    answers = (answer[0] if isinstance(answer, tuple | list) else answer for answer in sample["filtered_resps"])
    return [float(answer) for answer in answers if not isinstance(answer, str)]


def _decisions(sample: dict[str, Any], shares: set[str]) -> tuple[Any, ...]:
    """All of an item that is not a number of nats."""
    nats, answers = _nats(sample), sample["filtered_resps"]
    greedy = [bool(answer[1]) for answer in answers if isinstance(answer, tuple | list)]
    texts = [answer for answer in answers if isinstance(answer, str)]
    return nats.index(max(nats)) if nats else None, greedy, texts, [sample.get(name) for name in sorted(shares)]


def _share_names(samples: Samples) -> set[str]:
    """Metrics that count each item as right (1) or not (0)."""
    names = {name for sample in samples for name in sample["metrics"]}
    return {name for name in names if all(sample.get(name, 0) in (0, 1) for sample in samples)}


def model_facts(model: HybridLM, export: Path | None) -> dict[str, Any]:
    """`weights` says whether the model was trained."""
    a = model.architecture
    shape = {"operators": a.operators, "width": a.hidden_size, "vocabulary": a.vocab_size}
    positions = {"max_position_embeddings": a.max_position_embeddings, "num_meta_tokens": a.num_meta_tokens}
    total = parameters(a)["total"]
    return {**shape, **positions, "parameters": total, "weights": "an export's" if export else "random"}


def export_random_model(given: argparse.Namespace, directory: Path) -> Path:
    """Where its export lies, with a tokenizer that was trained on the sets."""
    files = sorted(f for f in Path(given.task_data).iterdir() if f.name.endswith(SUFFIXES))
    texts = (json.dumps(row, ensure_ascii=False) for file in files for row in read_rows(file)[:200])
    save_tokenizer(train_tokenizer(texts, VOCABULARY), directory / "tokenizer")
    sizes = ModelConfig(head_dim=64, num_meta_tokens=8, max_position_embeddings=1024, mamba_state=16)
    model = HybridLM.build(build_architecture(given.operators, given.width, sizes, VOCABULARY), seed=0).eval()
    with torch.no_grad():
        model.embedding.weight *= SPREAD
    export_huggingface(model, directory / "tokenizer", directory / "huggingface", ExportConfig(dtype="float32"))
    return directory / "huggingface"


def hf_model(exported: Path, batch_size: int) -> Any:
    """The harness's own model of the export, which runs the code that the export carries."""
    from lm_eval.models.huggingface import HFLM

    options = {"device": pick_device("auto"), "dtype": "float32", "batch_size": batch_size, "trust_remote_code": True}
    return HFLM(pretrained=str(exported), **options)


def _limit(text: str) -> tuple[str, int]:
    task, _, limit = text.partition("=")
    if not task or not limit.isdecimal():
        raise ValueError(f"'{text}' is not TASK=ITEMS, such as hellaswag=2000 (0: all)")
    return task, int(limit)


LIMIT = OptionType(_limit)


def make_parser() -> argparse.ArgumentParser:
    parser = script_parser(__doc__)
    parser.add_argument("--task-data", type=DIRECTORY, required=True)
    parser.add_argument("--export", type=DIRECTORY, help="an export's directory; empty: random weights")
    parser.add_argument("--tasks", nargs="+", type=TEXT, default=list(TASKS))
    parser.add_argument("--limit", type=COUNT_OR_NONE, default=50, help="first items of each task; 0: all")
    parser.add_argument("--limits", nargs="+", type=LIMIT, default=[], metavar="TASK=ITEMS")
    parser.add_argument("--hf-batch", type=COUNT, default=8)
    parser.add_argument("--width", type=COUNT, default=256)
    parser.add_argument("--operators", type=OPERATORS, default="DFMFAF")
    parser.add_argument("--output", type=OUTPUT)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
