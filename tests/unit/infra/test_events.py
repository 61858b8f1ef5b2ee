"""Events: whole lines for the launcher, progress for a person who reads the log."""

import json
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flashslm.infra.events import Events


def test_lines_of_parallel_steps_do_not_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASHSLM_EVENTS", str(tmp_path / "events.jsonl"))
    steps = [Events.from_env("pretrain", f"pretrain seed={seed}") for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda events: [events.emit("progress", "x" * 500, number=n) for n in range(50)], steps))
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert len(lines) == 200
    assert [e["number"] for e in lines if e["label"] == "pretrain seed=2"] == list(range(50))


@pytest.mark.parametrize("has_launcher", [True, False])
def test_progress_is_in_the_steps_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, has_launcher: bool
) -> None:
    monkeypatch.delenv("FLASHSLM_EVENTS", raising=False)
    if has_launcher:
        monkeypatch.setenv("FLASHSLM_EVENTS", str(tmp_path / "events.jsonl"))
    caplog.set_level("INFO", "flashslm")
    events = Events.from_env("search", "search worker=0")
    events.emit("start")
    events.emit("progress", "trial 3 of 16")
    assert caplog.record_tuples == [("flashslm.steps.search", logging.INFO, "trial 3 of 16")]
    assert (tmp_path / "events.jsonl").exists() == has_launcher


def test_a_secret_in_a_message_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASHSLM_EVENTS", str(tmp_path / "events.jsonl"))
    Events.from_env("search", "search").emit("fail", "cannot reach postgresql://flashslm:hunter2@db/studies")
    (line,) = (tmp_path / "events.jsonl").read_text().splitlines()
    assert json.loads(line)["summary"].startswith("cannot reach postgresql") and "hunter2" not in line
