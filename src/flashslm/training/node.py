"""One node of a TrainJob: torchrun below a process that hears SIGTERM at any time.

As process 1 of a container torchrun does not hear it while it imports torch and while it waits for the other nodes, and
Kubernetes sends it once and waits for the whole grace. So a shell, which starts in a millisecond, hands it on to this
module, which imports no torch: until a worker has trained a step there is nothing to save, and it kills them all; from
then on SIGTERM is torchrun's, which waits until the workers have saved.
"""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import FrameType

import psutil

from flashslm.infra.process.parent import PARENT_PID

TRAINED = "FLASHSLM_STEP_TRAINED"  # names the file that a worker makes when it has trained its first step
_HAND_ON = """trap 'kill -TERM "$child" 2>/dev/null || exit 143' TERM
"$@" &
child=$!
while wait "$child"; code=$?; kill -0 "$child" 2>/dev/null; do :; done
exit "$code"
"""


def node_command(*arguments: str) -> list[str]:
    """What the container of a node runs; `arguments` are torchrun's."""
    return ["sh", "-c", _HAND_ON, "sh", "python", "-m", __name__, *arguments]


def note_trained() -> None:
    """A worker has trained a step: from now on SIGTERM waits until it has saved."""
    if path := os.environ.get(TRAINED):
        Path(path).touch()


def run_node(torchrun: list[str]) -> int:
    """Run that command until it ends or SIGTERM ends it; returns its exit code, 128 + signal if a signal ended it."""
    with tempfile.TemporaryDirectory(prefix="flashslm-node-") as directory:
        trained = Path(directory) / "trained"
        started: list[subprocess.Popen[bytes]] = []
        asked = False

        def end(number: int, frame: FrameType | None) -> None:
            nonlocal asked
            asked = True
            for process in started:
                _end(process, at_once=not trained.exists())

        signal.signal(signal.SIGTERM, end)
        environment = os.environ | {PARENT_PID: str(os.getpid()), TRAINED: str(trained)}
        started.append(subprocess.Popen(torchrun, env=environment))
        if asked:  # while torchrun was being started
            _end(started[0], at_once=True)
        code = started[0].wait()
        if asked and code < 0:
            return 128 + signal.SIGTERM
        return 128 - code if code < 0 else code


def _end(process: "subprocess.Popen[bytes]", at_once: bool) -> None:
    if not at_once:
        process.terminate()
        return
    below = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.kill()
    for worker in below:
        if worker.is_running():
            worker.kill()


if __name__ == "__main__":
    sys.exit(run_node([sys.executable, "-m", "flashslm.training.workers", *sys.argv[1:]]))
