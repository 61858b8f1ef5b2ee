"""The model card: what the hub reads of it, and what stands in it."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from pydantic import ValidationError

from flashslm.config import ExportConfig
from flashslm.export.huggingface import export_huggingface
from flashslm.export.model_card import completed, training_data, with_header

DATA = {"source": "some text", "documents": 95, "train_tokens": 605_265, "bytes": 1_500_000}
EVALUATION: dict[str, Any] = {
    "test/perplexity": 70.5,
    "test/perplexity_stderr": 0.8,
    "test/bits_per_byte": 3.1,
    "test/context": 64,
    "needle": [
        {"length": 48, "accuracy": 0.0, "accuracy_stderr": 0.0, "samples": 16},
        {"length": 96, "accuracy": 0.25, "samples": 16},
    ],
    "tasks": {"arc_easy": {"acc": 0.31, "acc_stderr": 0.02, "samples": 400.0, "version": 1.0, "shots": 5.0}},
}
LATENCY = {"latency_ms": 0.046876, "latency_p90_ms": 0.047491, "context": 64, "batch": 1, "device": "Some CPU"}


@pytest.fixture
def readme(model: Any, tokenizer_dir: Path, tmp_path: Path) -> str:
    export_huggingface(model, tokenizer_dir, tmp_path / "m", ExportConfig(license="apache-2.0"), DATA)
    return (tmp_path / "m" / "README.md").read_text()


def test_an_export_has_the_hubs_metadata_and_what_one_must_know(readme: str) -> None:
    data = ModelCard(readme).data.to_dict()
    assert (data["license"], data["library_name"], data["pipeline_tag"]) == (
        "apache-2.0",
        "transformers",
        "text-generation",
    )
    assert "custom_code" in data["tags"] and "model-index" not in data
    for heading in ("## Intended use", "## Training data", "## Load it", "## Serve it"):
        assert heading in readme
    assert "vLLM 0.22" in readme and "`docs/vllm.md` there says what it supports" in readme
    assert "some text: 95 documents, 605,265 training tokens, 1,500,000 bytes of text, duplicates dropped." in readme


def test_results_with_their_errors_are_in_the_model_index(readme: str) -> None:
    card = completed(readme, "small", EVALUATION, LATENCY, "some text")
    header = yaml.safe_load(re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)[1])  # type: ignore[index]
    (entry,) = header["model-index"]
    found = {(r["dataset"]["type"], m["type"]): m for r in entry["results"] for m in r["metrics"]}
    needles = [r for r in entry["results"] if r["dataset"]["type"] == "needle"]
    assert [(r["dataset"]["name"], [m["value"] for m in r["metrics"]]) for r in needles] == [
        ("needle in 48 tokens of that text, 16 samples", [0.0]),
        ("needle in 96 tokens of that text, 16 samples", [0.25]),
    ]
    assert entry["name"] == "small" and set(found) == {
        ("held-out", "perplexity"),
        ("held-out", "bits_per_byte"),
        ("needle", "accuracy"),
        ("arc_easy", "acc"),
    }
    perplexity = found["held-out", "perplexity"]
    assert (perplexity["value"], perplexity["args"]) == (70.5, {"standard_error": 0.8})
    assert "args" not in found["held-out", "bits_per_byte"] and "datasets" not in header
    assert [r.metric_value for r in ModelCard(card).data.eval_results] == [70.5, 3.1, 0.0, 0.25, 0.31]
    assert "| some text, test split, 64 tokens of context | Perplexity per token | 70.5000 ± 0.8000 |" in card
    far = completed(readme, "small", EVALUATION | {"test/perplexity": 6868.53171}, LATENCY, "some text")
    assert "| Perplexity per token | 6868.5 ± 0.8 |" in far
    assert "16 samples | Needles found | 0.0000 |" in card, "a standard error of 0 says nothing"
    assert "| Some CPU | 64 | 1 | 0.04688 | 0.04749 |" in card and card.count("## Results") == 1


def test_a_data_set_of_the_hub_is_linked(readme: str) -> None:
    card = completed(readme, "small", EVALUATION, LATENCY, "a/b", hub_dataset="a/b")
    assert ModelCard(card).data.datasets == ["a/b"]


def test_what_is_not_known_is_not_claimed() -> None:
    assert training_data(None) == training_data({}) == "Not recorded with this export."
    assert training_data({"source": "x"}) == "x."
    assert ModelCard(with_header("# x", ExportConfig().license)).data.license == "unknown"
    with pytest.raises(ValidationError):
        ExportConfig(license="Apache 2.0")
