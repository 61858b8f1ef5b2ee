"""benchmarks/peers.py: two tiny models with two seeds, judged on a set made here, cut off and called again."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import peers
from flashslm.statistics import t_difference
from tests.unit.data.corpora import WORDS, make_texts, write_jsonl
from tests.unit.evaluation.conftest import few_harness_tasks  # noqa: F401
from tests.unit.experiments.tiny import recipe, write

SECTIONS: dict[str, dict[str, Any]] = {
    "data": {"source": "files", "paths": ["text.jsonl"], "vocab_size": 300, "validation_fraction": 0.1},
    "experiment": {"match": "parameters", "parameters": 30_000, "baseline": "attention"},
}


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The arguments of a comparison of which a training takes a moment."""
    monkeypatch.setenv("FLASHSLM_COMMIT", "0123456789abcdef")
    write_jsonl(tmp_path / "text.jsonl", make_texts(300))
    rows = [{"goal": text, "sol1": WORDS[i], "sol2": WORDS[i + 1], "label": 0} for i, text in enumerate(make_texts(6))]
    (tmp_path / "sets").mkdir()
    write_jsonl_rows(tmp_path / "sets" / "piqa_validation.jsonl", rows)
    config = write(tmp_path, recipe(**SECTIONS))
    places = ["--directory", str(tmp_path / "work"), "--text", str(tmp_path / "text.jsonl"), "--config", str(config)]
    tasks = ["--task-data", str(tmp_path / "sets"), "--tasks", "piqa", "--limit", "5"]
    return [*places, *tasks, "--output", str(tmp_path / "record.json")]


def write_jsonl_rows(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_the_tokens_of_a_training_are_those_of_all_its_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASHSLM_COMMIT", "0123456789abcdef")
    staged = recipe(**SECTIONS, training={"stages": [{"from_step": 3, "batch_size": 6}]})
    assert peers.begin(staged, [], 0)["tokens_per_training"] == (3 * 2 + 6) * 32


@pytest.mark.usefixtures("few_harness_tasks")
def test_peers_are_compared_item_by_item_and_over_seeds(
    call: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert peers.main([*call, "--max-minutes", "0"]) == peers.CUT_OFF
    assert peers.main(call) == 0
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["recipe"]["data"]["decontaminate_against"] == [str(tmp_path / "sets")]
    assert record["tokens_per_training"] == 4 * 2 * 32 == record["trainings"][0]["facts"]["tokens_seen"]
    found = {(t["model"], t["seed"]): t["metrics"] for t in record["trainings"]}
    assert set(found) == {(model, seed) for model in ("attention", "deltanet") for seed in (0, 1)}
    rows = {(d["seed"], d["metric"]): d for d in record["differences"]}
    for seed in (0, 1):
        for metric, items in (("piqa/acc", 5), ("test/loss_nats", None)):
            row = rows[seed, metric]
            assert row["value"] == found["deltanet", seed][metric]
            assert row["baseline_value"] == found["attention", seed][metric]
            assert row["difference"] == row["value"] - row["baseline_value"]
            assert row["low"] <= row["difference"] <= row["high"] and row["items"] == (items or row["items"])
    (loss,) = [row for row in record["over_seeds"] if row["metric"] == "test/loss_nats"]
    by_seed = [found["deltanet", s]["test/loss_nats"] - found["attention", s]["test/loss_nats"] for s in (0, 1)]
    assert (loss["difference"], loss["low"]) == pytest.approx(t_difference(by_seed)[:2])

    monkeypatch.setattr(peers, "train", lambda *_: pytest.fail("it was trained before"))
    assert peers.main([*call, "--max-minutes", "0"]) == 0
    assert json.loads((tmp_path / "record.json").read_text())["differences"] == record["differences"]
    assert peers.main([*call, "--max-minutes", "0", "--set", "training.steps=5"]) == peers.CUT_OFF
