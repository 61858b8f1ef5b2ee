"""Following a run: the workflow's nodes become steps; the commands `submit` and `runs`."""

import io
import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from flashslm.cli.app import app
from flashslm.launch.kfp.api import Connection
from flashslm.launch.kfp.client import KfpClient
from flashslm.launch.kfp.run_steps import steps_of
from flashslm.launch.kfp.watch import follow
from flashslm.launch.processes import LaunchError
from tests.pipeline.fake_kfp import FakeKfp
from tests.pipeline.tiny import enter_checkout

BEGIN = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)
NAME = "retraining-x7k2p"


def workflow(*tasks: list[dict[str, Any]]) -> dict[str, Any]:
    """Argo's workflow of a run with these tasks, as KFP 2.17 makes it: every template is wrapped in a Retry node."""
    nodes = {f"{NAME}-{number}": {"id": f"{NAME}-{number}"} | node for number, node in enumerate(chain(*tasks))}
    return {"metadata": {"name": NAME}, "status": {"nodes": nodes}}


def task(
    name: str, phase: str, start_s: int = 0, end_s: int | None = None, attempts: int = 1, message: str = ""
) -> list[dict[str, Any]]:
    """The nodes of a task; without attempts it was cached, and its executor skipped."""
    whole = f"{NAME}(0).root(0).exit-handler-1(0).{name}"
    inner = f"{whole}(0).executor"
    times = {"startedAt": at(start_s), "finishedAt": at(end_s)}
    nodes = [node(whole, "Retry", phase, **times), node(f"{whole}(0)", "DAG", phase, **times)]
    nodes.append(node(inner, "Retry" if attempts else "Skipped", phase if attempts else "Skipped", **times))
    for attempt in range(attempts):
        last = attempt == attempts - 1
        state = phase if last else "Failed"
        started = {"startedAt": at(start_s + attempt)}
        nodes.append(node(f"{inner}({attempt})", "Pod", state, message=message if last else "lost", **started))
    return nodes


def node(name: str, kind: str, phase: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "type": kind, "phase": phase, "templateName": "impl"} | more


def at(time_s: int | None) -> str | None:
    return None if time_s is None else (BEGIN + timedelta(seconds=time_s)).isoformat().replace("+00:00", "Z")


Snapshot = tuple[str, dict[str, Any] | None]
FAILED = workflow(
    task("prepare-data", "Succeeded", 1, 2, attempts=0),
    task("evaluate", "Failed", 4, 34, attempts=2, message="main: Error (exit code 1)"),
)
SNAPSHOTS: list[Snapshot] = [
    ("PENDING", None),
    ("RUNNING", workflow(task("prepare-data", "Succeeded", 1, 2, attempts=0))),
    ("RUNNING", workflow(task("prepare-data", "Succeeded", 1, 2, attempts=0), task("evaluate", "Running", 4))),
    ("FAILED", FAILED),
]


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
    fake.logs[f"{NAME}-impl-7"] = "I1101 12:00:04 1 launcher_v2.go:90] starting\n" + "".join(
        f"line {number}\n" for number in range(30)
    )
    screen = io.StringIO()
    client = KfpClient(Connection(fake.url, environ={}), "")
    run_id = fake.runs[0].run_id
    state, steps = follow(client, run_id, Console(file=screen, width=200))
    assert state == "FAILED"
    assert [(s.label, s.state, s.cached, s.duration_s, s.attempt) for s in steps] == [
        ("prepare_data", "SUCCESS", True, 1.0, 0),
        ("evaluate", "FAILURE", False, 30.0, 2),
    ]
    assert screen.getvalue().splitlines() == [
        "prepare_data: cached",
        "evaluate: started",
        "evaluate: started (attempt 2)",
        "evaluate: FAILED after 30.0 s: Error (exit code 1)",
        "evaluate failed: Error (exit code 1)",
        *(f"  line {number}" for number in range(10, 30)),
        f"its whole log: flashslm runs logs {run_id} 'evaluate' --host {fake.url}",
    ]


def test_waiting_steps_are_shown_and_results_read_once(fake: FakeKfp) -> None:
    submit(fake)
    done = task("prepare-data", "Succeeded", 1, 2)
    running = ("RUNNING", workflow(done, task("evaluate", "Running", 3)))
    fake.script = [("RUNNING", workflow(done)), running, running, ("SUCCEEDED", workflow(done))]
    fake.logs[f"{NAME}-impl-3"] = "2026-11-01 12:00:02 INFO flashslm.steps.run: result: 12 documents\n"
    client = KfpClient(Connection(fake.url, environ={}), "")
    run = client.run(fake.runs[0].run_id)
    waiting = [(step.label, step.state) for step in steps_of(client, run)]
    assert waiting == [("prepare_data", "SUCCESS"), ("evaluate", "WAITING")]
    screen = io.StringIO()
    _, steps = follow(client, run.run_id, Console(file=screen, width=200))
    assert "prepare_data: done after 1.0 s: 12 documents" in screen.getvalue()
    assert [step.state for step in steps] == ["SUCCESS", "SKIPPED"] and steps[0].summary == "12 documents"
    assert fake.count("GET", "/log") == 1


def test_a_server_that_is_away_leaves_the_run_alone(fake: FakeKfp) -> None:
    submit(fake)
    run_id = fake.runs[0].run_id
    fake.fail("GET", "/runs/", 503, times=99)
    client = KfpClient(Connection(fake.url, environ={}, sleep=lambda _: None), "")
    with pytest.raises(LaunchError, match=f"answers 503: set to fail; the run continues: .*/{run_id}"):
        follow(client, run_id, Console(file=io.StringIO()))


@pytest.mark.parametrize(("state", "exit_code"), [("SUCCEEDED", 0), ("FAILED", 1), ("CANCELED", 1)])
def test_submit_waits_and_says_how_it_ended(fake: FakeKfp, state: str, exit_code: int) -> None:
    phase = "Succeeded" if state == "SUCCEEDED" else "Failed"
    running, ended = task("evaluate", "Running", 1), task("evaluate", phase, 1, 3)
    fake.script = [("RUNNING", workflow(running)), (state, workflow(ended))]
    result = submit(fake, "--wait", "--json", "--experiment", "ours", "training.steps=7")
    assert result.exit_code == exit_code, result.output
    facts = json.loads(result.stdout.splitlines()[-1])
    assert (facts["state"], facts["num_steps"], facts["experiment"]) == (state, 2, "ours")
    assert facts["failed_steps"] == (["evaluate"] if state == "FAILED" else [])
    assert facts["url"] == f"{fake.url}/#/runs/details/{fake.runs[0].run_id}" and facts["url"] in result.stderr


def test_submit_does_not_wait_unless_asked(fake: FakeKfp) -> None:
    result = submit(fake)
    assert result.exit_code == 0 and fake.count("GET", "/runs/[^/]+") == 0
    assert f"/#/runs/details/{fake.runs[0].run_id}" in result.stdout


def test_ctrl_c_ends_the_watching_and_not_the_run(fake: FakeKfp, checkout: Path) -> None:
    fake.script = [("RUNNING", workflow(task("evaluate", "Running", 1)))] * 1000
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
    assert command.stderr is not None
    errors = next(line for line in command.stderr if "evaluate: started" in line)  # the first look is over
    command.send_signal(signal.SIGINT)
    errors += command.communicate(timeout=120)[1]
    run = fake.runs[0]
    assert command.returncode == 130, errors
    assert "Traceback" not in errors and f"the run continues: {fake.url}/#/runs/details/{run.run_id}" in errors
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
    assert [step["state"] for step in json.loads(shown.stdout)["steps"]] == ["SUCCESS", "FAILURE"]
    person = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["runs", "show", run_id, "--host", fake.url])
    assert "failure (2)" in person.stdout and "exit code 1" in person.stdout
    assert CliRunner().invoke(app, ["runs", "cancel", run_id, "--host", fake.url]).exit_code == 0
    assert fake.runs[0].state == "CANCELING"
