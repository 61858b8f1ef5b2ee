"""Runs of this machine: how they ended, how one is named, how two differ, and what cached steps came to."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flashslm.cli import runs as runs_command
from flashslm.cli.app import app
from flashslm.config import RunConfig
from flashslm.config.file import dump
from flashslm.infra.process import owners
from flashslm.launch.local import kept_summaries, run_records
from flashslm.launch.processes import LaunchError


def make_run(runs: Path, run_id: str, age_s: float = 0.0, steps: int = 200, **facts: Any) -> Path:
    """A run's directory as `flashslm run` leaves it."""
    directory = runs / run_id
    (directory / "logs").mkdir(parents=True)
    config = RunConfig.model_validate({"name": "small", "training": {"steps": steps}})
    (directory / "config.yaml").write_text(dump(config))
    os.utime(directory / "config.yaml", (1e9 - age_s, 1e9 - age_s))
    environment = {"commit": f"commit of {run_id}", "python": "3.11", "platform": "x", "packages": {"torch": "2.13"}}
    (directory / "environment.json").write_text(json.dumps(environment))
    run_records.begin(directory, "design_and_train", "http://127.0.0.1:5000/#/1")
    if facts:
        run_records.finish(directory, facts)
    log = directory / "logs" / "evaluate.log"
    log.write_text("first\nlast\n")
    task = {"step": "evaluate", "label": "evaluate", "task": "evaluate", "time_s": 100.0, "summary": ""}
    events = [
        task | {"event": "task_start", "log": str(log)},
        task | {"event": "task_end", "time_s": 104.0, "state": "SUCCESS", "cached": False, "artifacts": {}},
    ]
    (directory / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return directory


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    root = tmp_path / "runs"
    results = {"test/perplexity": 80.0, "parameters": 1000, "decision": "promote"}
    make_run(root, "20261101-small", age_s=9, state="SUCCESS", **results)
    make_run(root, "20261102-small", age_s=5, steps=300, state="SUCCESS", **results | {"test/perplexity": 60.0})
    make_run(root, "20261103-small", state="FAILURE", failed_step="gate")
    (root / "latest").symlink_to("20261102-small")
    return root


def command(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["runs", *arguments], env={"KF_PIPELINES_ENDPOINT": "", "COLUMNS": "160"})
    assert result.exit_code == code, result.output + str(result.exception)
    return result.stdout if not code else str(result.exception)


def test_runs_are_listed_the_newest_first_and_once(runs: Path) -> None:
    listed = json.loads(command("list", "--runs", str(runs), "--json"))["runs"]
    assert [run["run_id"] for run in listed] == ["20261103-small", "20261102-small", "20261101-small"]
    assert [run["state"] for run in listed] == ["FAILURE", "SUCCESS", "SUCCESS"]
    shown = CliRunner().invoke(app, ["runs", "list", "--runs", str(runs)], env={"COLUMNS": "80"}).stdout
    assert "…" not in shown and len(shown.splitlines()) == 4, "one line for each run on 80 columns"
    assert "20261102-small" in shown and "60" in shown and "promote" in shown
    narrow = CliRunner().invoke(app, ["runs", "list", "--runs", str(runs)], env={"COLUMNS": "30"}).stdout
    assert narrow.split() == shown.split(), "nothing is cut off on a narrow terminal"
    assert "no runs in" in command("list", "--runs", str(runs / "none"))


def test_a_run_in_progress_is_told_from_one_that_was_killed(runs: Path) -> None:
    directory = make_run(runs, "20261104-small")
    assert run_records.read(directory).state == "RUNNING"
    record = json.loads((directory / "run.json").read_text())
    gone = f"{owners.machine()} {os.getpid()} 1.0"
    (directory / "run.json").write_text(json.dumps(record | {"owner": gone}))
    assert run_records.read(directory).state == "KILLED"
    (directory / "run.json").write_text("{half")
    assert run_records.read(directory).state == "KILLED"


@pytest.mark.parametrize("content", ["[]", "7", "null", "{", ""])
def test_a_damaged_record_leaves_the_other_runs(runs: Path, content: str) -> None:
    (runs / "20261102-small" / "run.json").write_text(content)
    states = {run.run_id: run.state for run in run_records.all_runs(runs)}
    assert states["20261102-small"] == "KILLED" and states["20261101-small"] == "SUCCESS"


@pytest.mark.parametrize(
    ("name", "found"),
    [("20261101-small", "20261101-small"), ("20261101", "20261101-small"), ("latest", "20261102-small")],
)
def test_a_run_is_found_by_its_id_its_beginning_or_as_the_latest(runs: Path, name: str, found: str) -> None:
    assert run_records.find(runs, name).run_id == found


@pytest.mark.parametrize(("name", "said"), [("2026", "3 runs in"), ("x", "no runs in")])
def test_a_name_that_is_not_one_run_is_answered_with_those_there_are(runs: Path, name: str, said: str) -> None:
    with pytest.raises(LaunchError, match=f"{said} .* there are: 20261103-small, 20261102-small"):
        run_records.find(runs, name)


def test_one_run_is_shown_with_its_steps_and_logs(runs: Path) -> None:
    shown = json.loads(command("show", "latest", "--runs", str(runs), "--json"))
    assert (shown["run_id"], shown["state"], shown["test/perplexity"], shown["num_steps"]) == (
        "20261102-small",
        "SUCCESS",
        60.0,
        1,
    )
    assert shown["steps"][0] | {"pod": ""} == {
        "step": "evaluate",
        "state": "SUCCESS",
        "cached": False,
        "duration_s": 4.0,
        "attempts": 0,
        "result": "",
        "pod": "",
    }
    assert command("logs", "latest", "evaluate", "--runs", str(runs)) == "first\nlast\n"
    assert "it has: evaluate" in command("logs", "latest", "pretrain", "--runs", str(runs), code=1)


@pytest.mark.parametrize("record", ["killed", "damaged", "cancelled"])
def test_a_step_that_ran_when_its_run_ended_is_shown(runs: Path, record: str) -> None:
    directory = make_run(runs, "20261104-small")
    known = json.loads((directory / "run.json").read_text())
    killed, cancelled = ({"owner": f"{owners.machine()} {os.getpid()} 1.0"}, {"state": "CANCELLED"})
    written = {"killed": json.dumps(known | killed), "damaged": "{", "cancelled": json.dumps(known | cancelled)}
    (directory / "run.json").write_text(written[record])
    task = {"step": "gate", "label": "gate", "task": "gate", "time_s": 105.0, "summary": "", "event": "task_start"}
    with (directory / "events.jsonl").open("a") as events:
        events.write(json.dumps(task | {"log": str(directory / "logs" / "gate.log")}) + "\n")
    shown = command("show", "20261104", "--runs", str(runs)).splitlines()[-1].split()
    assert shown[:2] == ["gate", "cancelled" if record == "cancelled" else "killed"]


def test_two_runs_differ_in_settings_results_and_commit(runs: Path) -> None:
    found = json.loads(command("compare", "20261101", "latest", "--runs", str(runs), "--json"))
    assert found == {
        "training.steps": [200, 300],
        "test/perplexity": [80.0, 60.0],
        "commit": ["commit of 20261101-small", "commit of 20261102-small"],
    }
    assert "-25.0%" in command("compare", "20261101", "--runs", str(runs))
    assert "differ in nothing" in command("compare", "latest", "latest", "--runs", str(runs))


def test_a_report_is_opened(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(runs_command.webbrowser, "open", opened.append)
    assert "has no report" in command("open", "latest", "--runs", str(runs), code=1) and opened == []
    (runs / "20261102-small" / "report.html").write_text("x")
    printed = command("open", "--runs", str(runs))
    assert printed.strip() == opened[0] == (runs / "20261102-small" / "report.html").resolve().as_uri()
    command("open", "latest", "--mlflow", "--runs", str(runs))
    assert opened[1] == "http://127.0.0.1:5000/#/1"


class Address:
    """An artifact of kfp."""

    def __init__(self, uri: str) -> None:
        self.uri = uri


def test_a_tasks_key_is_that_of_its_step_and_all_it_is_given() -> None:
    def key(step: str = "evaluate", **arguments: Any) -> str:
        return kept_summaries.task_key(step, {"config": {"a": 1.0}, "data": Address("x"), "seed": "0"} | arguments)

    assert key() == key() == key(data=Address("x"))
    others = [key("gate"), key(data=Address("y")), key(seed="1"), key(config={"a": 2.0}), key(data=[Address("x")])]
    assert len({key(), *others}) == 6
    with pytest.raises(TypeError, match="no stable identity"):
        key(seed=object())


def test_results_are_kept_by_key(tmp_path: Path) -> None:
    kept_summaries.add(tmp_path, "k1", "perplexity 60")
    kept_summaries.add(tmp_path, "k4", "new")
    assert kept_summaries.read(tmp_path) == {"k1": "perplexity 60", "k4": "new"}


def test_a_cached_step_is_shown_with_its_result_and_counted_as_in_the_run(tmp_path: Path) -> None:
    directory = make_run(tmp_path, "20261104-small", state="SUCCESS")
    tasks = [{"step": "pretrain", "label": f"pretrain seed={n}", "task": f"{n}", "time_s": 1.0} for n in range(3)]
    events = []
    for number, task in enumerate(tasks):
        events.append(task | {"event": "task_start", "log": str(tmp_path / "missing"), "key": "k", "summary": ""})
        end = {"event": "task_end", "state": "SUCCESS", "cached": number > 0, "summary": f"loss {number}"}
        events.append(task | end | {"artifacts": {}})
    (directory / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    shown = json.loads(command("show", "20261104-small", "--runs", str(tmp_path), "--json"))
    assert (shown["num_steps"], shown["cached_steps"]) == (3, 2)
    assert [step["result"] for step in shown["steps"]] == ["", "loss 1", "loss 2"]
    logs = command("logs", "20261104-small", "pretrain seed=1", "--runs", str(tmp_path))
    assert "(cached) is there: it was taken from the cache" in logs


def test_what_is_kept_has_a_bound_and_survives_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_summaries, "MOST", 2)
    for key in ("a", "b", "c"):
        kept_summaries.add(tmp_path, key, key)
    assert list(kept_summaries.read(tmp_path)) == ["b", "c"]
    (tmp_path / "kfp" / "summaries.json").write_text("{half")
    assert kept_summaries.read(tmp_path) == {}
