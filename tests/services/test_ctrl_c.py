"""Signals that all processes get, as those of a terminal do at Ctrl-C, while `flashslm pretrain` trains."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from flashslm.infra.settings import Settings
from flashslm.infra.storage.object_store import ObjectStore
from flashslm.infra.tracking.mlflow_client import TrackingClient
from flashslm.steps.attempts import RETRIES
from tests.holding import held_at, workers_held_at
from tests.services.pretraining import metric_steps, write_inputs
from tests.unit.training import tiny
from tests.waiting import wait_until

pytestmark = pytest.mark.services
ROOT = Path(__file__).parents[2]
STEPS, HELD_AT = 24, 3
RUN = "pretrain · wnorm on · seed 0"


class Terminal:
    """A user's terminal: commands on tiny inputs, each in a process group of its own, and what they print."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.events = directory, directory / "events.jsonl"
        self.started: list[subprocess.Popen[str]] = []

    def pretrain(self, processes: int, learning_rate: float, **variables: str) -> subprocess.Popen[str]:
        """With that rate a run has its own checkpoints."""
        of_recipe = {"processes": processes, "learning_rate": learning_rate, "checkpoint_every_steps": 1000}
        training = tiny.config(steps=STEPS, **of_recipe)
        changes = {name: value for name, value in training.model_dump(mode="json").items() if value is not None}
        changes |= {"weight_norm": ["on"], "deploy": "best"}
        command = [sys.executable, "-m", "flashslm", "pretrain", "--config", str(ROOT / "configs" / "smoke.yaml")]
        command += [f"training.{name}={json.dumps(value)}" for name, value in changes.items()]
        places = {"FLASHSLM_EVENTS": str(self.events), "FLASHSLM_CACHE": str(self.directory / "cache")}
        self.started.append(
            subprocess.Popen(
                [*command, "--artifacts", str(self.directory), "--json"],
                cwd=ROOT,
                env=os.environ | places | variables,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                process_group=0,
            )
        )
        return self.started[-1]

    def signal_when_held(self, command: subprocess.Popen[str], number: signal.Signals) -> list[psutil.Process]:
        """The processes that it found."""
        wait_until(lambda: command.poll() is not None or self._trained(HELD_AT), timeout_s=300)
        assert command.poll() is None, command.communicate()
        found = [psutil.Process(command.pid), *psutil.Process(command.pid).children(recursive=True)]
        os.killpg(command.pid, number)
        return found

    def _trained(self, step: int) -> bool:
        return self.events.exists() and f'"training_step": {step}' in self.events.read_text()


@pytest.fixture
def terminal(platform_env: Settings, store: ObjectStore, tmp_path: Path) -> Iterator[Terminal]:
    directory = tmp_path / "artifacts"
    (directory / "smoke").mkdir(parents=True)
    write_inputs(store, directory / "smoke")
    terminal = Terminal(directory)
    yield terminal
    for command in terminal.started:
        if command.poll() is None:
            os.killpg(command.pid, signal.SIGKILL)
        command.communicate()


def held(processes: int, directory: Path) -> dict[str, str]:
    return held_at("pretrain", HELD_AT, directory / "hold") if processes == 1 else workers_held_at(HELD_AT)


def status(settings: Settings) -> str:
    return str(TrackingClient(settings).find_runs(f"attributes.run_name = '{RUN}'")[0].info.status)


def left(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [each for each in processes if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize(
    ("processes", "retries", "number", "rate"),
    [
        (1, "0", signal.SIGINT, 1e-3),
        (2, "0", signal.SIGINT, 2e-3),
        (2, "0", signal.SIGTERM, 3e-3),
        (1, "2", signal.SIGINT, 4e-3),
    ],
)
def test_a_signal_to_all_processes_keeps_the_training_and_the_same_command_continues(
    platform_env: Settings,
    terminal: Terminal,
    tmp_path: Path,
    processes: int,
    retries: str,
    number: signal.Signals,
    rate: float,
) -> None:
    """Also where the step runs in a process below the one that tries it again."""
    command = terminal.pretrain(processes, rate, **held(processes, tmp_path), **{RETRIES: retries})
    found = terminal.signal_when_held(command, number)
    printed, errors = command.communicate(timeout=300)
    assert command.returncode == 128 + number and printed == "", errors
    assert not left(found)
    assert "Traceback" not in errors and errors.count("a second Ctrl-C") == (number == signal.SIGINT), errors
    kept = f"stopped after step {HELD_AT} of {STEPS}, and its checkpoint is stored: the same command continues there"
    if retries == "0":
        assert errors.splitlines()[-1] == kept
    assert status(platform_env) == "KILLED"
    (tmp_path / "hold").unlink(missing_ok=True)
    again = terminal.pretrain(processes, rate)
    result, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors
    made: dict[str, Any] = json.loads(result)["checkpoint-on-0"]
    assert made["resumed_from_step"] == HELD_AT and status(platform_env) == "FINISHED"
    assert metric_steps(platform_env, RUN) == list(range(HELD_AT + 1, STEPS + 1))
