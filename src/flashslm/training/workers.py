"""Worker processes that train together: torchrun on this node, and what their output says.

A worker reports metrics, where it resumes, outages, its failure and what it kept when it was asked to end in marked
lines of its output; every other line is its log. Run as a module, this is torchrun itself, which ends with the process
that started it and gives each worker its share of the cores.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from flashslm.hardware import thread_shares
from flashslm.infra import outages
from flashslm.infra.process.interrupts import Terminated, away_from_the_terminal, ignore_the_terminal, keeping
from flashslm.infra.process.parent import PARENT_PID, die_with_parent
from flashslm.training.spec import NonFiniteLoss, OnMetrics, OnResume

_METRICS, _RESUMED, _OUTAGE, _FAILURE, _KEPT = "@metrics", "@resumed", "@outage", "@failure", "@kept"
_LONGEST_FAILURE = 3000  # characters: a pipe takes 4096 bytes whole
_FAIL_AGAIN = (NonFiniteLoss.__name__, "OutOfMemoryError")  # torch's, of the GPU
_SAVE_S = 600  # after SIGTERM the workers finish their step and save


class WorkerFailed(RuntimeError):
    """Workers ended without a result; `reported` is the first failure's type and message."""

    def __init__(self, message: str, reported: str = ""):
        super().__init__(message)
        self.reported = reported


def print_metrics(step: int, metrics: dict[str, float]) -> None:
    """The `on_metrics` of a worker."""
    _print(f"{_METRICS} {json.dumps({'step': step} | metrics)}\n")


def print_resumed(step: int, checkpoint: str) -> None:
    """The `on_resume` of a worker."""
    _print(f"{_RESUMED} {json.dumps({'step': step, 'checkpoint': checkpoint})}\n")


def print_outage(kind: str, sentence: str) -> None:
    """What a worker does with an outage that it waits for (`outages.heard_by`)."""
    _print(f"{_OUTAGE} {json.dumps({'kind': kind, 'sentence': sentence})}\n")


@contextmanager
def print_failure() -> Iterator[None]:
    """Say in the output why the block failed, in one line, or what it kept."""
    try:
        yield
    except Terminated as error:
        _print(f"\n{_KEPT} {error.kept}\n")
        raise
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        _print(f"\n{_FAILURE} {text[:_LONGEST_FAILURE]}\n")  # another worker may have written half a line
        raise


def _print(lines: str) -> None:
    """In one write, which a pipe takes whole: all workers of a node write into one."""
    sys.stdout.write(lines)
    sys.stdout.flush()


class WorkerOutput:
    """Hands metrics to `on_metrics`, each step once, resumption to `on_resume`, log lines to `on_log`, and outages to
    those who listen to this process'; keeps the first failure, and what was kept.

    Lines may come again, as those of a log that was cut off do.
    """

    def __init__(self, on_metrics: OnMetrics, on_resume: OnResume, on_log: Callable[[str], None]):
        self._on_metrics, self._on_resume, self._on_log = on_metrics, on_resume, on_log
        self._step = 0
        self.failure = self.kept = ""

    def line(self, text: str) -> None:
        mark, _, content = text.partition(" ")
        if mark == _FAILURE:
            self.failure = self.failure or content
            return
        if mark == _KEPT:
            self.kept = self.kept or content
            return
        try:
            if mark == _METRICS:
                self.row(json.loads(content))
            elif mark == _RESUMED:
                self._resumed(**json.loads(content))
            elif mark == _OUTAGE:
                outages.say(**json.loads(content))
            else:
                self._on_log(text)
        except ValueError:  # cut off where the worker was killed
            self._on_log(text)

    def restarted(self) -> None:
        """The workers begin again: what ended those before is past."""
        self.failure = ""

    def fails_again(self) -> bool:
        """Whether workers that begin again from the last checkpoint come to the same failure."""
        return self.failure.partition(": ")[0] in _FAIL_AGAIN

    def row(self, row: dict[str, float]) -> None:
        """A row of metrics with its `step`; one that is not newer than those before is left out."""
        if (step := int(row["step"])) > self._step:
            self._step = step
            self._on_metrics(step, {key: value for key, value in row.items() if key != "step"})

    def _resumed(self, step: int, checkpoint: str) -> None:
        self._step = max(self._step, step)  # rows up to there are those of an earlier attempt, or were shown
        self._on_resume(step, checkpoint)


def run_workers(module: str, argument: str, processes: int, output: WorkerOutput) -> None:
    """Run `python -m module argument` in as many processes under torchrun, to their end. Raises WorkerFailed.

    An exception here, Terminated among them, reaches the workers as SIGTERM and continues once they have saved. Ctrl-C
    in a terminal, which goes to all processes of it, reaches them in this way alone.
    """
    options = ["--standalone", "--local-addr=127.0.0.1", f"--nproc-per-node={processes}", "-m", module, argument]
    variables = {PARENT_PID: str(os.getpid()), "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(_SAVE_S)}
    with away_from_the_terminal():
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=os.environ | variables,
        )
    assert process.stdout is not None
    with keeping(lambda: output.kept):
        try:
            for line in process.stdout:
                output.line(line.rstrip("\n"))
            exit_code = process.wait()
        except BaseException:
            process.terminate()
            for line in process.stdout:
                output.line(line.rstrip("\n"))
            process.wait()
            raise
        finally:
            process.kill()
    if exit_code:
        message = output.failure or f"torchrun ended with exit code {exit_code}; its output says why"
        raise WorkerFailed(message, output.failure)


def _torchrun() -> None:
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.run import determine_local_world_size, main, parse_args

    die_with_parent()
    ignore_the_terminal()
    os.environ |= thread_shares(determine_local_world_size(parse_args(sys.argv[1:]).nproc_per_node))
    os.environ[PARENT_PID] = str(os.getpid())

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)  # at a third one torch leaves workers behind that save
        raise SignalException("asked to end", signal.Signals(number))

    signal.signal(signal.SIGTERM, end)
    try:
        main(["--signals-to-handle=SIGQUIT", *sys.argv[1:]])
    except SignalException as error:  # it has ended the workers; a traceback would say no more than the code
        sys.exit(128 + error.sigval)


if __name__ == "__main__":
    _torchrun()
