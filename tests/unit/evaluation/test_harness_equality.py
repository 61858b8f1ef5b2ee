"""benchmarks/harness_equality.py: both models on a set made here, and the differences that it must find."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import harness_equality
from flashslm.config import ExportConfig
from flashslm.export.huggingface import export_huggingface
from flashslm.models.architecture import build_architecture
from flashslm.models.hybrid import HybridLM
from tests.unit.data.corpora import WORDS, make_texts
from tests.unit.training.tiny import SIZES

Outcome = dict[str, Any]


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    rows = [
        {"goal": text, "sol1": WORDS[i % 8], "sol2": " ".join(WORDS[i % 7 : i % 7 + 3]), "label": i % 2}
        for i, text in enumerate(make_texts(12, words=9))
    ]
    (tmp_path / "piqa_validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.mark.usefixtures("few_harness_tasks")
def test_an_export_is_compared_with_hf_item_by_item(
    sets: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = HybridLM.build(build_architecture("DFAF", 32, SIZES, 300), seed=0).eval()
    export_huggingface(model, dataset / "tokenizer", tmp_path / "export/huggingface", ExportConfig(dtype="float32"))
    output = tmp_path / "record.json"
    arguments = ["--task-data", str(sets), "--export", str(tmp_path / "export"), "--tasks", "piqa"]
    monkeypatch.setenv("FLASHSLM_COMMIT", "0123456789abcdef")
    monkeypatch.setattr(sys, "argv", ["harness_equality.py", *arguments, "--limits", "piqa=8", "--output", str(output)])
    assert harness_equality.main() == 0
    record = json.loads(output.read_text())
    (task,) = record["tasks"]
    assert record["model"]["operators"] == "DFAF" and record["model"]["weights"] == "an export's"
    assert task["task"] == "piqa" and task["limit"] == task["items"] == task["same_decisions"] == 8
    assert task["log_likelihoods"] == 16 and set(task["metrics"]) == {"acc", "acc_norm"}
    assert task["is_equal"] and 0 < task["largest_difference_nats"] < 1e-3


def outcome(nats: tuple[float, float], is_right: float, perplexity: float = 3.0) -> Outcome:
    """Of one item with two choices, which `perplexity` depends on too."""
    sample = {"doc_id": 0, "filter": "none", "doc_hash": "a", "metrics": ["acc", "perplexity"], "acc": is_right}
    answers = [(x, False) for x in nats]
    values = {"acc,none": is_right, "perplexity,none": perplexity}
    return {
        "samples": {"made": [sample | {"filtered_resps": answers, "perplexity": nats[0]}]},
        "results": {"made": values},
        "n-samples": {"made": {"effective": 1}},
        "versions": {"made": 1.0},
        "n-shot": {"made": 0},
    }


BASE = outcome((-10.0, -12.0), 1.0)


def test_rounding_is_no_difference() -> None:
    found = harness_equality.compare_outcomes(BASE, outcome((-10.00001, -12.0), 1.0, 3.00001))
    assert found["is_equal"] and found["largest_difference_nats"] == pytest.approx(1e-5)


def test_a_metric_that_hf_lacks_is_a_difference_and_null_in_the_record() -> None:
    found = harness_equality.compare_metrics({"acc": 0.5}, {}, {"acc"})
    assert json.loads(json.dumps(found, allow_nan=False)) == {"acc": {"ours": 0.5, "hf": None, "is_same": False}}


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (outcome((-10.0, -9.0), 1.0), "same_decisions"),
        (outcome((-10.0, -12.0), 0.0), "same_decisions"),
        (outcome((-10.01, -12.0), 1.0), "nats_within_tolerance"),
        (outcome((-10.0, -12.0), 1.0, 3.01), "perplexity"),
    ],
    ids=["other choice", "other verdict", "other log-likelihood", "other perplexity"],
)
def test_a_difference_is_found(other: Outcome, what: str) -> None:
    found = harness_equality.compare_outcomes(BASE, other)
    assert not found["is_equal"]
    assert not (found["metrics"][what]["is_same"] if what in found["metrics"] else found[what])
