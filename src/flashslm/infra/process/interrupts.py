"""SIGTERM, SIGHUP and Ctrl-C as requests to end in order, and clean-up that they do not cut short.

They mean the same, but for a second Ctrl-C: whoever presses it does not want to wait, and it ends the process at once.
A process that is started `away_from_the_terminal` hears of Ctrl-C from the one that started it, as SIGTERM.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

_POLL_S = 0.1
_ASKING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_FROM_THE_TERMINAL = (signal.SIGINT, signal.SIGHUP)
_STOPPING = b"\nstopping in order; a second Ctrl-C ends it at once\n"

SignalHandler = Callable[[int, FrameType | None], None]


@dataclass
class StopRequest:
    """Set once a signal has asked for the end. No threading.Event: its wait has a lock that the handler would take."""

    requested: bool = False
    number: int = signal.SIGTERM  # of the first signal
    by_ctrl_c: bool = False  # so that the next one ends the process
    blocks: int = 0  # entered that handle signals


_process = StopRequest()


class Terminated(SystemExit):
    """A request to end, as an exception, so that every `with` and `finally` on the way out runs.

    `code` is 128 + signal; `kept` says what the same work continues from when it is started again.
    """

    def __init__(self, code: int, kept: str = ""):
        super().__init__(code)
        self.code: int = code
        self.kept = kept

    def __str__(self) -> str:
        return self.kept or f"ended by {signal.Signals(self.code - 128).name}"


@contextmanager
def keeping(what: Callable[[], str]) -> Iterator[None]:
    """Say in a Terminated that leaves the block, unless it says so already, what the same work continues from."""
    try:
        yield
    except Terminated as error:
        error.kept = error.kept or what()
        raise


@contextmanager
def terminable() -> Iterator[None]:
    """Raise Terminated on SIGTERM, and on SIGHUP and Ctrl-C where those would end the process: not under `nohup`.
    Without effect outside the main thread, which alone receives signals.

    Until the block is left, threads that wait for something see the request in `stop_requested`.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(number: int, frame: FrameType | None) -> None:
        second_ends_at_once(number)
        if not _process.requested:  # another one must not cut the clean-up short
            request_stop(number)
            raise Terminated(128 + number)

    ends = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    others = [number for number, handler in ends.items() if signal.getsignal(number) is handler]
    with handled(terminate, [signal.SIGTERM, *others]):
        yield


@contextmanager
def handled(handler: SignalHandler, numbers: Sequence[int]) -> Iterator[None]:
    """Those signals go to `handler` in the block. A request to end is over with the outermost of such blocks."""
    before = {number: signal.signal(number, handler) for number in numbers}
    _process.blocks += 1
    try:
        yield
    finally:
        _process.blocks -= 1
        if not _process.blocks:
            end_stop_request()
        for number, former in before.items():
            if number != signal.SIGINT or not _process.by_ctrl_c:
                signal.signal(number, former)


def asking_signals() -> list[int]:
    """The signals that ask this process to end: not one that is ignored, as under `nohup`, nor a second Ctrl-C."""
    heard = [number for number in _ASKING if signal.getsignal(number) is not signal.SIG_IGN]
    return [number for number in heard if number != signal.SIGINT or signal.getsignal(number) is not signal.SIG_DFL]


def second_ends_at_once(number: int) -> None:
    """To be called by a handler that lets the process end in order: it says so after Ctrl-C, and leaves the next one to
    the kernel, which does not wait for Python.
    """
    if number == signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        _process.by_ctrl_c = True
        os.write(2, _STOPPING)  # `sys.stderr` may be in the middle of a line of this very thread


def request_stop(number: int) -> None:
    """Let waiting threads know that this process is asked to end, by that signal."""
    if not _process.requested:
        _process.requested, _process.number = True, number


def requested_by() -> int:
    """The first signal that asked for the end; SIGTERM where another process heard it."""
    return _process.number


def end_stop_request() -> None:
    """The block that was asked to end has been left."""
    _process.requested, _process.number, _process.by_ctrl_c = False, signal.SIGTERM, False


def stop_requested(within_s: float = 0.0) -> bool:
    """Whether this process is asked to end, or is so within that time."""
    until_s = time.monotonic() + within_s
    while not _process.requested and (left_s := until_s - time.monotonic()) > 0:
        time.sleep(min(left_s, _POLL_S))
    return _process.requested


@contextmanager
def deferred_signals() -> Iterator[None]:
    """Hold signals that ask for the end back until the block is done; what waits sees them (`stop_requested`). A second
    Ctrl-C is not held back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received, requested_before = list[int](), stop_requested()

    def note(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
        request_stop(number)
        received.append(number)

    before = {number: signal.signal(number, note) for number in asking_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if received:
            _process.requested = requested_before  # the handler that is back says what the signal means
            signal.raise_signal(received[0])


@contextmanager
def away_from_the_terminal() -> Iterator[None]:
    """A process that is started in the block hears neither Ctrl-C nor the end of the terminal, and neither does what it
    starts: this one does, and sends it SIGTERM. Otherwise it would be asked twice, and in the middle of its imports.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _FROM_THE_TERMINAL)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_the_terminal() -> None:
    """The same for this process, which was started so, for good: libraries that start processes unblock signals."""
    for number in _FROM_THE_TERMINAL:
        signal.signal(number, signal.SIG_IGN)
