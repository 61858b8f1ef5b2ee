"""Events: whole lines for the launcher, progress for a person where there is no launcher."""

import json
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


def test_without_a_launcher_progress_goes_to_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("FLASHSLM_EVENTS", raising=False)
    events = Events.from_env("search", "search worker=0")
    events.emit("start")
    events.emit("progress", "trial 3 of 16")
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err == "search worker=0: trial 3 of 16\n"


def test_a_secret_in_a_message_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASHSLM_EVENTS", str(tmp_path / "events.jsonl"))
    Events.from_env("search", "search").emit("fail", "cannot reach postgresql://flashslm:hunter2@db/studies")
    (line,) = (tmp_path / "events.jsonl").read_text().splitlines()
    assert json.loads(line)["summary"].startswith("cannot reach postgresql") and "hunter2" not in line
