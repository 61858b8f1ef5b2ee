"""What the pods of a run have written: a step's result, the end of its log, all of it."""

import re

from flashslm.launch.kfp.api import KfpError, Unavailable
from flashslm.launch.kfp.client import KfpClient

# Written by `steps.run.run_step`.
_RESULT = re.compile(r" INFO flashslm\.steps\.run: result: (.+)$")
_LAUNCHER = re.compile(r"[IWE]\d{4} .*\.go:\d+\] ")
TAIL_LINES = 20


def step_log(client: KfpClient, run_id: str, pod: str) -> list[str]:
    """The lines of a pod's log without those of KFP's launcher; empty where there is none (yet, or any more)."""
    if not pod:
        return []
    try:
        text = client.pod_log(run_id, pod)
    except Unavailable:
        raise
    except KfpError:
        return []
    return [line for line in text.splitlines() if not _LAUNCHER.match(line)]


def result_in(lines: list[str]) -> str:
    """The step's own summary of its result; empty for a log without one."""
    return next((found[1] for line in reversed(lines) if (found := _RESULT.search(line))), "")
