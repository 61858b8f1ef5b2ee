"""Check on real sets that the harness gets the same digits from this project's adapter as from its own hf model.

    python benchmarks/harness_equality.py --task-data DIR [--tasks piqa arc_easy ...] [--limit 50] [--width 256]
                                          [--operators DFMFAF] [--output FILE]

A small model with random weights is exported in fp32 and evaluated by both on the first `limit` documents of each task,
whose sets are read from DIR (docs/evaluation.md: its layout). Rolling tasks are run with hf's `add_bos_token=False`:
else hf also predicts the token that the tokenizer puts before a page and which does not belong to it. Writes
benchmarks/results/harness-equality_<device>_<date>.json, whose rows hold every metric twice; the last line of stdout is
that record. The exit code is 1 where an accuracy differs, or another metric by more than 1e-5 of itself.
"""

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import torch

from flashslm.benchmarking.record import Provenance, provenance, result_name
from flashslm.config import ExportConfig, ModelConfig
from flashslm.data.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from flashslm.evaluation.harness import Asked, run_tasks
from flashslm.evaluation.task_data import SUFFIXES, read_rows
from flashslm.evaluation.task_metrics import is_metric
from flashslm.evaluation.task_results import task_results
from flashslm.evaluation.tasks import find_tasks
from flashslm.export.huggingface import export_huggingface
from flashslm.hardware import pick_device
from flashslm.models.architecture import build_architecture
from flashslm.models.hybrid import HybridLM

RESULTS = Path(__file__).parent / "results"
TASKS = ("piqa", "arc_easy", "winogrande", "hellaswag", "openbookqa", "social_iqa", "lambada_openai")
VOCABULARY = 2048
SPREAD = 20.0  # of the embedding, so that choices differ by more than rounding
RELATIVE_TOLERANCE = 1e-5  # of metrics that are sums of nats


def main() -> int:
    given = _arguments()
    facts = Provenance(**provenance(pick_device("auto"))).model_dump(mode="json")
    with tempfile.TemporaryDirectory() as directory:
        model = export_random_model(given, Path(directory))
        ours, _ = run_tasks(
            model,
            load_tokenizer(Path(directory) / "tokenizer"),
            Asked(given.tasks, given.limit, task_data=given.task_data),
        )
        theirs = hf_results(given, Path(directory) / "huggingface")
    rows = [
        {
            "task": task,
            "metric": metric,
            "samples": ours[task]["samples"],
            "ours": value,
            "hf": theirs[task].get(metric),
        }
        for task in ours
        for metric, value in ours[task].items()
        if is_metric(metric)
    ]
    differing = [row for row in rows if not is_same(row)]
    record = {"subject": "harness equality", **facts, "limit": given.limit, "rows": rows, "differing": differing}
    output = given.output or RESULTS / f"{result_name('harness-equality', pick_device('auto'))}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(record))
    return 1 if differing else 0


def is_same(row: dict[str, Any]) -> bool:
    """Accuracies to the last digit, sums of nats to rounding."""
    ours, hf = row["ours"], row["hf"]
    exact = row["metric"].startswith(("acc", "exact_match", "contains"))
    return hf is not None and (ours == hf if exact else math.isclose(ours, hf, rel_tol=RELATIVE_TOLERANCE))


def export_random_model(given: argparse.Namespace, directory: Path) -> HybridLM:
    """The model, its export in `huggingface` and its tokenizer, trained on the sets, in `tokenizer`."""
    files = sorted(f for f in Path(given.task_data).iterdir() if f.name.endswith(SUFFIXES))
    texts = (json.dumps(row, ensure_ascii=False) for file in files for row in read_rows(file)[:200])
    save_tokenizer(train_tokenizer(texts, VOCABULARY), directory / "tokenizer")
    sizes = ModelConfig(head_dim=64, num_meta_tokens=8, max_position_embeddings=1024, mamba_state=16)
    model = HybridLM.build(build_architecture(given.operators, given.width, sizes, VOCABULARY), seed=0).eval()
    with torch.no_grad():
        model.embedding.weight *= SPREAD
    export_huggingface(model, directory / "tokenizer", directory / "huggingface", ExportConfig(dtype="float32"))
    return model.to(pick_device("auto"))


def hf_results(given: argparse.Namespace, exported: Path) -> dict[str, dict[str, float]]:
    """What the harness's own model gets."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    options = {"device": pick_device("auto"), "dtype": "float32", "batch_size": 8, "trust_remote_code": True}
    hf = HFLM(pretrained=str(exported), **options)
    found: dict[str, dict[str, float]] = {}
    for task in given.tasks:
        manager = find_tasks([task], task_data=given.task_data)
        loaded = manager.load([task])["tasks"]
        is_rolling = any(of.OUTPUT_TYPE == "loglikelihood_rolling" for of in loaded.values())
        hf.add_bos_token = False if is_rolling else None
        outcome = lm_eval.simple_evaluate(
            hf, tasks=[task], limit=given.limit, task_manager=manager, bootstrap_iters=1000
        )
        found |= task_results(outcome)
    return found


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task-data", required=True)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--limit", type=int, default=50)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--operators", default="DFMFAF")
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
