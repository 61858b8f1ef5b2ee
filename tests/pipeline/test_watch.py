"""Following a run: KFP's task details become steps; the commands `submit` and `runs`."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from flashslm.cli.app import app
from flashslm.launch.kfp.api import Connection
from flashslm.launch.kfp.client import KfpClient
from flashslm.launch.kfp.watch import follow
from flashslm.launch.processes import LaunchError
from tests.pipeline.fake_kfp import FakeKfp
from tests.pipeline.tiny import enter_checkout

BEGIN = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)
NEVER = datetime(1970, 1, 1, tzinfo=UTC)


def task(name: str, state: str, start_s: float = 0, end_s: float | None = None, **more: Any) -> dict[str, Any]:
    """As the API writes it: what has not ended ended in 1970."""
    start, end = (NEVER if s is None else BEGIN + timedelta(seconds=s) for s in (start_s, end_s))
    times = {"create_time": start.isoformat(), "start_time": start.isoformat(), "end_time": end.isoformat()}
    return {"task_id": more.pop("task_id", f"{name}-{start_s}"), "display_name": name, "state": state} | times | more


def executor(of: str, state: str, number: int = 0) -> dict[str, Any]:
    return task(f"executor({number})", state, number, task_id=f"{of}-executor-{number}")


def children(of: str, count: int) -> dict[str, Any]:
    return {"child_tasks": [{"task_id": f"{of}-executor-{n}"} for n in range(count)]}


INNER = [task("root", "RUNNING"), task("root-driver", "SUCCEEDED", 0, 1), task("for-loop-2", "RUNNING", 2)]
SNAPSHOTS: list[tuple[str, list[dict[str, Any]]]] = [
    ("PENDING", []),
    ("RUNNING", [*INNER, task("prepare-data", "SUCCEEDED", 1, 2, **children("p", 1)), executor("p", "SKIPPED")]),
    (
        "RUNNING",
        [
            *INNER,
            task("prepare-data", "SUCCEEDED", 1, 2, **children("p", 1)),
            executor("p", "SKIPPED"),
            task("pretrain", "RUNNING", 4, **children("b", 1)),
            task("pretrain", "RUNNING", 3, **children("a", 1)),
            task("evaluate", "PENDING", 9),
            executor("a", "RUNNING"),
            executor("b", "RUNNING"),
        ],
    ),
    (
        "FAILED",
        [
            *INNER,
            task("prepare-data", "SUCCEEDED", 1, 2, **children("p", 1)),
            executor("p", "SKIPPED"),
            task("pretrain", "SUCCEEDED", 3, 13, **children("a", 1)),
            task("pretrain", "FAILED", 4, 34, error={"code": 2, "message": "exit code 1"}, **children("b", 2)),
            executor("a", "SUCCEEDED"),
            executor("b", "FAILED", 0),
            executor("b", "FAILED", 1),
        ],
    ),
]


@pytest.fixture
def fake() -> Iterator[FakeKfp]:
    with FakeKfp() as server:
        yield server


@pytest.fixture(autouse=True)
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("flashslm.launch.kfp.watch._POLL_S", 0.01)
    return enter_checkout(tmp_path / "checkout", monkeypatch)


def submit(fake: FakeKfp, *arguments: str) -> Any:
    options = ["--config", "toy.yaml", "--host", fake.url, "--pipeline", "retraining"]
    return CliRunner().invoke(app, ["submit", *options, *arguments])


def test_steps_appear_as_they_begin_and_end(fake: FakeKfp) -> None:
    submit(fake)
    fake.script = [*SNAPSHOTS]
    screen = io.StringIO()
    client = KfpClient(Connection(fake.url, environ={}), "")
    state, steps = follow(client, fake.runs[0].run_id, Console(file=screen, width=200))
    assert state == "FAILED"
    assert [(s.label, s.state, s.cached, s.duration_s) for s in steps] == [
        ("prepare-data", "SUCCESS", True, 1.0),
        ("pretrain", "SUCCESS", False, 10.0),
        ("pretrain (2)", "FAILURE", False, 30.0),
    ]
    assert screen.getvalue().splitlines() == [
        "prepare-data: cached",
        "pretrain: started",
        "pretrain (2): started",
        "pretrain: done after 10.0 s",
        "pretrain (2): started (attempt 2)",
        "pretrain (2): FAILED after 30.0 s: exit code 1",
        "pretrain (2) failed: exit code 1",
    ]


def test_a_server_that_is_away_leaves_the_run_alone(fake: FakeKfp) -> None:
    submit(fake)
    run_id = fake.runs[0].run_id
    fake.fail("GET", "/runs/", 503, times=99)
    client = KfpClient(Connection(fake.url, environ={}, sleep=lambda _: None), "")
    with pytest.raises(LaunchError, match=f"answers 503: told to fail; the run goes on: .*/{run_id}"):
        follow(client, run_id, Console(file=io.StringIO()))


@pytest.mark.parametrize(("state", "exit_code"), [("SUCCEEDED", 0), ("FAILED", 1), ("CANCELED", 1)])
def test_submit_waits_and_says_how_it_ended(fake: FakeKfp, state: str, exit_code: int) -> None:
    fake.script = [("RUNNING", [task("evaluate", "RUNNING", 1)]), (state, [task("evaluate", state, 1, 3)])]
    result = submit(fake, "--wait", "--json", "--experiment", "ours", "training.steps=7")
    assert result.exit_code == exit_code, result.output
    facts = json.loads(result.stdout.splitlines()[-1])
    assert (facts["state"], facts["steps"], facts["experiment"]) == (state, 1, "ours")
    assert facts["failed_steps"] == (["evaluate"] if state == "FAILED" else [])
    assert facts["url"] == f"{fake.url}/#/runs/details/{fake.runs[0].run_id}" and facts["url"] in result.stderr


def test_submit_does_not_wait_unless_asked(fake: FakeKfp) -> None:
    result = submit(fake)
    assert result.exit_code == 0 and fake.count("GET", "/runs/[^/]+") == 0
    assert f"/#/runs/details/{fake.runs[0].run_id}" in result.stdout


def test_ctrl_c_ends_the_watching_and_not_the_run(fake: FakeKfp, checkout: Path) -> None:
    fake.script = [("RUNNING", [task("evaluate", "RUNNING", 1)])] * 1000
    options = ["--config", "toy.yaml", "--host", fake.url, "--pipeline", "retraining", "--wait"]
    command = subprocess.Popen(
        [sys.executable, "-m", "flashslm", "submit", *options],
        cwd=checkout,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src")},
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job ignores SIGINT, and its children would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline_s = time.monotonic() + 60
    while not fake.count("GET", "/runs/[^/]+") and time.monotonic() < deadline_s:
        time.sleep(0.05)
    time.sleep(0.3)  # into the wait between two looks
    command.send_signal(signal.SIGINT)
    _, errors = command.communicate(timeout=60)
    run = fake.runs[0]
    assert command.returncode == 130, errors
    assert "Traceback" not in errors and f"the run goes on: {fake.url}/#/runs/details/{run.run_id}" in errors
    assert f"`flashslm runs cancel {run.run_id}` ends it" in errors
    assert run.state == "RUNNING" and fake.count("POST", ":terminate") == 0


def test_runs_are_listed_shown_and_cancelled(fake: FakeKfp) -> None:
    for _ in range(3):
        submit(fake)
    listed = CliRunner().invoke(app, ["runs", "list", "--host", fake.url, "--limit", "2", "--json"])
    runs = json.loads(listed.stdout)["runs"]
    assert [run["run_id"] for run in runs] == [fake.runs[2].run_id, fake.runs[1].run_id]
    assert runs[0]["state"] == "PENDING" and runs[0]["finished"] == ""
    table = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["runs", "list", "--host", fake.url])
    assert all(run.display_name in table.stdout for run in fake.runs)

    run_id = fake.runs[0].run_id
    fake.script = [SNAPSHOTS[3]] * 2
    shown = CliRunner().invoke(app, ["runs", "show", run_id, "--host", fake.url, "--json"])
    assert [step["state"] for step in json.loads(shown.stdout)["steps"]] == ["SUCCESS", "SUCCESS", "FAILURE"]
    person = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["runs", "show", run_id, "--host", fake.url])
    assert "pretrain (2)" in person.stdout and "exit code 1" in person.stdout
    assert CliRunner().invoke(app, ["runs", "cancel", run_id, "--host", fake.url]).exit_code == 0
    assert fake.runs[0].state == "CANCELING"
