"""SIGTERM and SIGHUP as exceptions, and clean-up that signals do not cut short."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

_POLL_S = 0.1


@dataclass
class StopRequest:
    """Set once a signal has asked for the end. No threading.Event: its wait has a lock that the handler would take."""

    requested: bool = False
    number: int = signal.SIGTERM


_process = StopRequest()


class Terminated(SystemExit):
    """SIGTERM or SIGHUP, as an exception, so that every `with` and `finally` on the way out runs."""


@contextmanager
def terminable() -> Iterator[None]:
    """Raise Terminated on SIGTERM, and on SIGHUP where that would end the process: not under `nohup`. Without effect
    outside the main thread, which alone receives signals.

    Until the block is left, threads that wait for something see either signal in `stop_requested`.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(number: int, frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)  # a second one must not cut the clean-up short
        request_stop(number)
        raise Terminated(128 + number)

    hang_up = [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL else []
    before = {number: signal.signal(number, terminate) for number in (signal.SIGTERM, *hang_up)}
    interrupt = signal.getsignal(signal.SIGINT)
    if interrupt is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.signal(signal.SIGINT, interrupt)
        end_stop_request()


def _interrupt(number: int, frame: FrameType | None) -> None:
    request_stop(number)
    raise KeyboardInterrupt


def request_stop(number: int) -> None:
    """Let waiting threads know that this process is asked to end, by that signal."""
    _process.requested, _process.number = True, number


def requested_by() -> int:
    """The last signal that asked for the end."""
    return _process.number


def end_stop_request() -> None:
    """The block that was asked to end has been left."""
    _process.requested = False


def stop_requested(within_s: float = 0.0) -> bool:
    """Whether this process is asked to end, or is so within that time."""
    until_s = time.monotonic() + within_s
    while not _process.requested and (left_s := until_s - time.monotonic()) > 0:
        time.sleep(min(left_s, _POLL_S))
    return _process.requested


@contextmanager
def deferred_signals() -> Iterator[None]:
    """Hold signals that ask for the end back until the block is done; what waits sees them (`stop_requested`)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received, requested_before = list[int](), stop_requested()

    def note(number: int, frame: FrameType | None) -> None:
        request_stop(number)
        received.append(number)

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if received:
            _process.requested = requested_before  # the handler that is back says what the signal means
            signal.raise_signal(received[0])
