"""The launcher's hold on the processes of a run: one run per home, and an end in order. No kfp here."""

import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType

import psutil

from flashslm.infra.process.interrupts import asking_signals, handled, request_stop
from flashslm.infra.process.owners import machine
from flashslm.infra.state_files import locked_file

_KILL_TAKES_AT_MOST_S = 5.0  # a process inside a system call ends with it


class LaunchError(RuntimeError):
    """A run cannot be started: the message says why and what to do."""


@contextmanager
def exclusive(path: Path, instead: str = "--home (`stack down` also takes --force)") -> Iterator[None]:
    """Hold the lock file; raise LaunchError with the holder's pid and machine if another process has it.

    `instead` is what a person may give to work elsewhere.
    """
    with ExitStack() as held:
        try:
            file = held.enter_context(locked_file(path, fcntl.LOCK_EX | fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise LaunchError(f"another run uses {path.parent} {_holder(path)}, or give another {instead}") from error
        file.truncate(0)
        file.write(f"{os.getpid()} {machine()}")
        file.flush()
        yield


def _holder(path: Path) -> str:
    """Who holds the lock file and how to end it; on a shared disk that may be a process of another machine."""
    pid, _, where = path.read_text(encoding="utf-8", errors="replace").strip().partition(" ")
    pid = pid if pid.isdigit() else "unknown"
    if where in ("", machine()):
        return f"(pid {pid}): wait for it, stop it with `kill {pid}`"
    return f"(pid {pid} on {where.partition('/')[0]}): wait for it, stop it there with `kill {pid}`"


class StopSignals:
    """While entered, SIGINT, SIGTERM and SIGHUP are only noted, for a loop that ends the run in an orderly way.

    Then nothing waits for a service that is away any longer. Under `nohup`, SIGHUP stays ignored.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self._handled = ExitStack()

    def __enter__(self) -> "StopSignals":
        # Only the main thread may set handlers; a caller in another thread keeps its own way to stop.
        if threading.current_thread() is threading.main_thread():
            self._handled.enter_context(handled(self._note, asking_signals()))
        return self

    def __exit__(self, *_: object) -> None:
        self._handled.close()

    def _note(self, number: int, _frame: FrameType | None) -> None:
        request_stop(number)
        self.received.append(number)


def stop_tree(pid: int, grace_s: float = 10.0, hurry: Callable[[], bool] = lambda: False) -> None:
    """End a runner and everything below it: TERM below, after the grace (or at once when `hurry()`) KILL all.

    The runner itself is frozen first: it would take the end of a step for a failure and start the retry.
    """
    try:
        root = psutil.Process(pid)
        root.suspend()
        below = root.children(recursive=True)
    except psutil.NoSuchProcess:
        return
    for process in below:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _wait(below, grace_s, hurry)
    left = {root, *below, *_descendants([root, *below])}
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    _wait(left, _KILL_TAKES_AT_MOST_S)


def _wait(processes: Iterable[psutil.Process], timeout_s: float, hurry: Callable[[], bool] = lambda: False) -> None:
    deadline_s = time.monotonic() + timeout_s
    while any(map(_lives, processes)) and time.monotonic() < deadline_s and not hurry():
        time.sleep(0.05)


def _descendants(processes: list[psutil.Process]) -> Iterator[psutil.Process]:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            yield from process.children(recursive=True)


def _lives(process: psutil.Process) -> bool:
    """A zombie no longer counts: its frozen parent cannot collect it."""
    with suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False
