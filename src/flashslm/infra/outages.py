"""Outages are ridden out: a caller waits for a service that is away, and what is away and for how long is said.

All callers of a process that wait for one service share its outage, so it is said once and then each minute, however
many threads wait: in the log, and to whoever listens (a step: its MLflow tags and its progress).
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from types import TracebackType

from flashslm.infra.process.interrupts import stop_requested

OnOutage = Callable[[str, str], None]  # the service's kind, such as "object store", and a sentence on its outage

_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0
_FIRST_SAID_AFTER_S, _SAID_EVERY_S = 5.0, 60.0
_LIMIT_WHILE_STOPPING_S = 3.0  # a process that is asked to end does not wait, but one failed request is not an outage
_log = logging.getLogger(__name__)
_listeners: list[OnOutage] = []


@contextmanager
def heard_by(listener: OnOutage) -> Iterator[None]:
    """Have every outage of this process reported to `listener`, from the thread that waits."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def say(kind: str, sentence: str) -> None:
    """Report a sentence on the outage of a service, also for one that another process waits for."""
    _log.warning("%s", sentence)
    for listener in list(_listeners):
        listener(kind, sentence)


class _Outage:
    """What this process knows of one service: how many callers wait, since when, and when that was last said."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting = 0
        self._since_s = 0.0
        self._said_s = 0.0  # 0 = not yet

    def enter(self) -> None:
        with self._lock:
            if not self._waiting:
                self._since_s, self._said_s = time.monotonic(), 0.0
            self._waiting += 1

    def is_to_be_said(self) -> float:
        """For how many seconds the service has been away, if that is to be said now; else 0."""
        with self._lock:
            now_s = time.monotonic()
            due_s = self._said_s + _SAID_EVERY_S if self._said_s else self._since_s + _FIRST_SAID_AFTER_S
            if now_s < due_s:
                return 0.0
            self._said_s = now_s
            return now_s - self._since_s

    def leave(self) -> float:
        """For how many seconds the service was away, if nothing waits for it any more and that was logged; else 0."""
        with self._lock:
            self._waiting -= 1
            return time.monotonic() - self._since_s if self._said_s and not self._waiting else 0.0


_outages: dict[tuple[str, str], _Outage] = {}
_outages_lock = threading.Lock()


class Wait:
    """One caller's tries to reach a service; over with its `with` block, or with `end`."""

    def __init__(self, kind: str, where: str, limit_s: float):
        """`kind` is such as "object store", `where` its address without credentials."""
        self._kind, self._where, self._limit_s = kind, where, limit_s
        with _outages_lock:
            self._outage = _outages.setdefault((kind, where), _Outage())
        self._since_s = 0.0  # of this caller's first failed try
        self._pause_s = _SHORTEST_PAUSE_S

    def pause(self, reason: str) -> bool:
        """Wait a moment after a failed try. False when `limit_s` have passed since the first one, or at once when this
        process is asked to end: then the caller raises what it got.
        """
        if not self._since_s:
            self._since_s = time.monotonic()
            self._outage.enter()
        limit_s = min(self._limit_s, _LIMIT_WHILE_STOPPING_S) if stop_requested() else self._limit_s
        left_s = self._since_s + limit_s - time.monotonic()
        try:
            if left_s <= 0:
                self.end(answered=False)
                return False
            if away_s := self._outage.is_to_be_said():
                waits = f"waiting up to {self._limit_s:.0f} s ({' '.join(reason.split())[:200]})"
                say(self._kind, f"{self._kind} at {self._where} has been away for {away_s:.0f} s; {waits}")
            self._sleep(min(self._pause_s, left_s))
        except BaseException:  # a signal
            self.end(answered=False)
            raise
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        return True

    def end(self, answered: bool = True) -> None:
        """The service has answered, or the caller stops waiting."""
        if not self._since_s:
            return
        self._since_s = 0.0
        away_s = self._outage.leave()
        if away_s and answered:
            until = datetime.now(UTC).strftime("%H:%M:%S UTC")
            say(self._kind, f"{self._kind} at {self._where} answers again at {until} after {away_s:.0f} s")

    def __enter__(self) -> "Wait":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: TracebackType | None) -> None:
        self.end(answered=error is None or isinstance(error, Exception))  # not after a signal

    @staticmethod
    def _sleep(seconds: float) -> None:
        if stop_requested():
            time.sleep(min(seconds, 0.5))
        else:
            stop_requested(within_s=seconds)
