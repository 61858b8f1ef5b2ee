"""Two real runs of one directory and one second, in homes of their own: nothing of one is in the other."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from flashslm.infra.stack import embedded_stack
from flashslm.infra.tracking.mlflow_client import TrackingClient
from tests.pipeline.conftest import FAKE_STEPS
from tests.pipeline.tiny import enter_checkout

pytestmark = pytest.mark.services

SECOND = "20261127-070000-"
# Stand-ins for the steps, and one second in which every run begins.
SITE = f"""
import time
exec(open({str(FAKE_STEPS / "sitecustomize.py")!r}).read())
strftime = time.strftime
time.strftime = lambda pattern, *when: {SECOND!r} if pattern == "%Y%m%d-%H%M%S-" else strftime(pattern, *when)
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with a pipeline of two steps, and two homes whose stacks run."""
    directory = enter_checkout(tmp_path / "checkout", monkeypatch)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE)
    homes = [tmp_path / name for name in ("one", "two")]
    try:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(embedded_stack.up, homes))
        yield directory
    finally:
        for home in homes:
            embedded_stack.down(home)


def start(checkout: Path, home: Path) -> subprocess.Popen[str]:
    env = {k: v for k, v in os.environ.items() if k not in ("FLASHSLM_CACHE", "FLASHSLM_SPOOL")}
    env |= {"PYTHONPATH": str(checkout.parent / "site"), "FAKE_CALLS": str(home) + "-calls.jsonl"}
    command = [sys.executable, "-m", "flashslm", "run", "--pipeline", "retraining", "--config", "toy.yaml", "--json"]
    pipe = subprocess.PIPE
    return subprocess.Popen([*command, "--home", str(home)], cwd=checkout, env=env, stdout=pipe, stderr=pipe, text=True)


def test_two_runs_of_one_second_and_directory_do_not_meet(checkout: Path) -> None:
    homes = [checkout.parent / name for name in ("one", "two")]
    processes = [start(checkout, home) for home in homes]
    printed = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    facts: list[dict[str, Any]] = [json.loads(output.splitlines()[-1]) for output, _ in printed]
    assert sorted(fact["run_id"] for fact in facts) == [f"{SECOND}toy", f"{SECOND}toy-2"]
    for home, fact in zip(homes, facts, strict=True):
        assert fact["state"] == "SUCCESS" and fact["steps"] == 2 and fact["cached_steps"] == 0
        run = checkout / fact["run_dir"]
        assert run.name == fact["run_id"] and {"config.yaml", "job.json", "logs"} <= {p.name for p in run.iterdir()}
        assert json.loads((run / "job.json").read_text())["home"] == str(home)
        events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
        assert sorted(e["step"] for e in events if e["event"] == "task_end") == ["evaluate", "prepare_data"]
        calls = Path(f"{home}-calls.jsonl").read_text().splitlines()
        assert sorted(json.loads(call)["step"] for call in calls) == ["evaluate", "prepare_data"]
        settings = embedded_stack.settings_of(home)
        assert settings is not None and fact["mlflow_url"].startswith(settings.tracking_uri)
        client = TrackingClient(settings)
        (recorded,) = client.find_runs("", client.experiment_ids())
        assert (recorded.data.tags["flashslm.run_id"], recorded.info.status) == (fact["run_id"], "FINISHED")
    assert (checkout / "runs" / "latest").resolve().name in {fact["run_id"] for fact in facts}
