"""Attempts of a step inside its pod, each in its own process.

KFP 2.17 retries lost pods only: its installation sets `retryPolicy: OnError`, which excludes exit codes. So a step
whose process crashed, or failed for a reason that may pass, is tried again here and resumes from its checkpoint.
What would fail again (the recipe, too little memory) is not repeated.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from flashslm.infra.process.interrupts import asking_signals, away_from_the_terminal, handled, second_ends_at_once
from flashslm.infra.process.parent import PARENT_PID
from flashslm.infra.storage.errors import StoreUnavailable
from flashslm.infra.storage.lease import LeaseTimeout
from flashslm.infra.tracking.mlflow_client import MlflowUnavailable
from flashslm.training.side_by_side import WorkerKilled

RETRIES = "FLASHSLM_STEP_RETRIES"  # set by the cluster pass from platform.retries
ONE_ATTEMPT = "flashslm.steps"  # its __main__
MAY_PASS = 75  # EX_TEMPFAIL of sysexits.h
_MEMORY_EVENTS = Path("/sys/fs/cgroup/memory.events")
_DEVICE_FAULTS = ("CUDA error", "NCCL error", "NCCL Error", "CUBLAS_STATUS", "CUDNN_STATUS")
_OUT_OF_MEMORY = "OOMKilled"  # Kubernetes' reason for the end of a TrainJob's pod
_ENDED_FROM_OUTSIDE = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_log = logging.getLogger(__name__)


def retries() -> int:
    """How often this process has to repeat a step; 0 where another process, or KFP's local runner, does it."""
    return int(os.environ.get(RETRIES, "0"))


def may_pass(error: BaseException) -> bool:
    """Whether the same work may succeed in a new process: a service is away, the device faulted, a worker crashed."""
    if isinstance(error, StoreUnavailable | MlflowUnavailable | LeaseTimeout | ConnectionError):
        return True
    if isinstance(error, WorkerKilled):  # what the others have finished is kept
        return True
    if "OutOfMemory" in type(error).__name__:
        return False
    if type(error).__name__ == "WorkerFailed":
        if _OUT_OF_MEMORY in str(error):  # of the pod that failed first: the others report that it is gone
            return False
        return not getattr(error, "reported", "") or any(fault in str(error) for fault in _DEVICE_FAULTS)
    return isinstance(error, RuntimeError) and any(fault in str(error) for fault in _DEVICE_FAULTS)


def run_attempts(call: dict[str, Any], retries: int, command: Sequence[str] = ()) -> dict[str, Any]:
    """Run a step (the arguments of `run_step`) in new processes until one succeeds; returns its result.

    Raises SystemExit with the exit code of the last attempt (128 + signal for one that was killed).
    """
    with tempfile.TemporaryDirectory(prefix="flashslm-step-") as directory:
        request, result = Path(directory) / "call.json", Path(directory) / "result.json"
        request.write_text(json.dumps(call), encoding="utf-8")
        child = [*(command or (sys.executable, "-m", ONE_ATTEMPT)), str(request), str(result)]
        for attempt in range(1, retries + 2):
            kills = _out_of_memory_kills()
            code = _exit_code(child)
            if code == 0:
                return dict(json.loads(result.read_text(encoding="utf-8")))
            ended = f"attempt {attempt} of {retries + 1} {_describe(code)}"
            if _out_of_memory_kills() > kills:
                _log.error("%s: the kernel ended it for lack of memory (OOMKilled); not tried again", ended)
                raise SystemExit(128 + signal.SIGKILL)
            if attempt > retries or not _is_temporary(code):
                raise SystemExit(code if code > 0 else 128 - code)
            _log.warning("%s; the next attempt resumes from its checkpoint", ended)
    raise AssertionError("the last attempt returns or raises")


def _exit_code(command: Sequence[str]) -> int:
    """The child's exit code, negative for a signal. A request to end is handed on to it as SIGTERM, and counts as what
    ended it if it fails then.
    """
    asked = list[int]()
    with away_from_the_terminal():
        process = subprocess.Popen(command, env=_environment())

    def hand_on(number: int, _frame: FrameType | None) -> None:
        second_ends_at_once(number)
        asked.append(number)
        process.terminate()

    with process, handled(hand_on, asking_signals()):
        code = process.wait()
    return -asked[0] if code and asked else code


def _environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k != RETRIES} | {PARENT_PID: str(os.getpid())}


def _is_temporary(code: int) -> bool:
    return code == MAY_PASS or (code < 0 and -code not in _ENDED_FROM_OUTSIDE)


def _describe(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _out_of_memory_kills() -> int:
    """Processes of this container that the kernel has killed for lack of memory (control groups, version 2)."""
    if not _MEMORY_EVENTS.is_file():
        return 0
    counts = dict(line.split() for line in _MEMORY_EVENTS.read_text().splitlines())
    return int(counts.get("oom_kill", 0))
