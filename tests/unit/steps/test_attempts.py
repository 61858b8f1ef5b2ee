"""Attempts of a step in its pod: what is tried again, what is not, and how it ends."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flashslm.infra.storage.errors import StoreError, StoreUnavailable
from flashslm.infra.tracking.mlflow_client import MlflowError, MlflowUnavailable
from flashslm.launch.kfp.cluster_pass import STEP_RETRIES
from flashslm.steps import attempts
from flashslm.training.side_by_side import WorkerKilled
from flashslm.training.workers import WorkerFailed

# Fails as `kinds` says, one kind per attempt; then it succeeds with the number of its attempt.
CHILD = """
import json, os, pathlib, signal, sys, time
request, result = sys.argv[1:]
call = json.loads(pathlib.Path(request).read_text())
count = pathlib.Path(call["count"])
attempt = int(count.read_text()) + 1
count.write_text(str(attempt))
kind = call["kinds"][attempt - 1] if attempt <= len(call["kinds"]) else "succeed"
if kind in ("sleep", "sleep and fail"):
    if kind == "sleep and fail":
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(75))
    pathlib.Path(call["count"] + ".sleeps").touch()
    time.sleep(60)
elif isinstance(kind, int):
    sys.exit(kind)
elif kind != "succeed":
    os.kill(os.getpid(), getattr(signal, kind))
pathlib.Path(result).write_text(json.dumps({"attempt": attempt, "retries": os.environ.get("FLASHSLM_STEP_RETRIES")}))
"""


def run(tmp_path: Path, *kinds: str | int, retries: int = 2) -> dict[str, object]:
    count = tmp_path / "count"
    count.write_text("0")
    call = {"count": str(count), "kinds": kinds}
    return attempts.run_attempts(call, retries, (sys.executable, "-c", CHILD))


def test_the_variable_is_the_one_that_the_cluster_pass_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    assert attempts.RETRIES == STEP_RETRIES
    monkeypatch.delenv(STEP_RETRIES, raising=False)
    assert attempts.retries() == 0
    monkeypatch.setenv(STEP_RETRIES, "2")
    assert attempts.retries() == 2


@pytest.mark.parametrize("kinds", [(), ("SIGKILL",), ("SIGSEGV", "SIGKILL"), (attempts.MAY_PASS, "SIGABRT")])
def test_a_crash_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kinds: tuple[str | int, ...]) -> None:
    monkeypatch.setenv(STEP_RETRIES, "2")
    assert run(tmp_path, *kinds) == {"attempt": len(kinds) + 1, "retries": None}  # a child does not repeat itself


@pytest.mark.parametrize(("kinds", "code", "made"), [((1,), 1, 1), (("SIGTERM",), 143, 1), (("SIGSEGV",) * 3, 139, 3)])
def test_other_ends_are_final(tmp_path: Path, kinds: tuple[str | int, ...], code: int, made: int) -> None:
    with pytest.raises(SystemExit) as ended:
        run(tmp_path, *kinds)
    assert ended.value.code == code and (tmp_path / "count").read_text() == str(made)


def test_lack_of_memory_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel kills the child alone; the control group counts it."""
    kills = iter([0, 1])
    monkeypatch.setattr(attempts, "_out_of_memory_kills", lambda: next(kills))
    with pytest.raises(SystemExit) as ended:
        run(tmp_path, "SIGKILL")
    assert ended.value.code == 137 and (tmp_path / "count").read_text() == "1"


@pytest.mark.parametrize("kind", ["sleep", "sleep and fail"])
def test_sigterm_reaches_the_child_and_ends_the_attempts(tmp_path: Path, kind: str) -> None:
    """Also where the child then fails for a reason that may pass, such as a store that is away."""
    count = tmp_path / "count"
    count.write_text("0")
    call = json.dumps({"count": str(count), "kinds": [kind]})
    code = (
        f"from flashslm.steps.attempts import run_attempts; run_attempts({call}, 2, ({sys.executable!r}, '-c', CHILD))"
    )
    process = subprocess.Popen([sys.executable, "-c", f"CHILD = {CHILD!r}\n{code}"], env=os.environ)
    while not Path(f"{count}.sleeps").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 143 and count.read_text() == "1"


class OutOfMemoryError(RuntimeError):
    """As torch names it."""


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (StoreUnavailable("S3 does not answer"), True),
        (MlflowUnavailable("the registry does not answer"), True),
        (ConnectionResetError("reset"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), True),
        (RuntimeError("NCCL error: unhandled system error"), True),
        (WorkerKilled("one of 3 workers was killed"), True),
        (WorkerFailed("torchrun ended with exit code 1"), True),
        (WorkerFailed("RuntimeError: NCCL error: remote process exited", "RuntimeError: NCCL error"), True),
        (WorkerFailed("TrainJob f failed: \npod f-node-0-1-0: OOMKilled, exit code 137"), False),
        (WorkerFailed("NCCL error\npod f-node-0-1-0: OOMKilled, exit code 137", "DistBackendError: NCCL error"), False),
        (WorkerFailed("TrainJob f failed: \npod f-node-0-1-0: Evicted The node was low on memory."), True),
        (WorkerFailed("NonFiniteLoss: the loss is nan", "NonFiniteLoss: the loss is nan"), False),
        (OutOfMemoryError("CUDA out of memory"), False),
        (StoreError("there is no such bucket"), False),
        (MlflowError("MLflow refused: INVALID_PARAMETER_VALUE"), False),
        (ValueError("search.trials is below search.population"), False),
        (RuntimeError("no trial was trained"), False),
    ],
)
def test_what_may_pass(error: Exception, expected: bool) -> None:
    assert attempts.may_pass(error) is expected
