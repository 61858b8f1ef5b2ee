"""A worker stops when the step that it works for is gone."""

import signal
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from flashslm.infra.storage import heartbeat
from flashslm.infra.storage.errors import StoreUnavailable
from flashslm.infra.storage.heartbeat import SILENCE_S, Abandoned, require_heartbeats, send_heartbeats
from tests.unit.launch.schedule.memory_store import MemoryStore
from tests.waiting import wait_until

KEY = "heartbeat.json"


class Terminations:
    """Counts SIGTERMs in place of ending the process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.came = threading.Event()
        monkeypatch.setattr("os.kill", lambda pid, number: number == signal.SIGTERM and self.came.set())


@pytest.fixture
def terminations(monkeypatch: pytest.MonkeyPatch) -> Terminations:
    return Terminations(monkeypatch)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time of day, which the test sets."""
    now_s = [1000.0]
    monkeypatch.setattr(heartbeat, "time", SimpleNamespace(time=lambda: now_s[0]))
    return now_s


def test_work_goes_on_while_a_step_waits_and_stops_afterwards(terminations: Terminations, clock: list[float]) -> None:
    store: Any = MemoryStore()
    with send_heartbeats(store, KEY, every_s=0.01), require_heartbeats(store, KEY, every_s=0.01):
        for _ in range(3):
            clock[0] += 0.6 * SILENCE_S
            wait_until(lambda: store.get_json(KEY)[0]["seen_s"] == clock[0])
        assert not terminations.came.is_set()
    with require_heartbeats(store, KEY, every_s=0.01):
        clock[0] += 1.1 * SILENCE_S
        assert terminations.came.wait(60.0)


def test_an_answer_that_comes_after_the_work_ends_nothing(
    terminations: Terminations, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    store: Any = MemoryStore()
    store.put_json(KEY, {"seen_s": clock[0]})
    get_json, asking, answer = store.get_json, threading.Event(), threading.Event()
    listeners: list[threading.Thread] = []

    def get_slowly(key: str) -> Any:
        if threading.current_thread() is not threading.main_thread():
            listeners.append(threading.current_thread())
            asking.set()
            answer.wait(300)
        return get_json(key)

    monkeypatch.setattr(store, "get_json", get_slowly)
    with require_heartbeats(store, KEY, every_s=0.01):
        assert asking.wait(300)
        clock[0] += 1.1 * SILENCE_S
    answer.set()
    listeners[0].join(300)
    assert not listeners[0].is_alive() and not terminations.came.is_set()


@pytest.mark.parametrize("seen_s", [None, 0.0])
def test_what_is_abandoned_does_not_begin(seen_s: float | None) -> None:
    store: Any = MemoryStore()
    if seen_s is not None:
        store.put_json(KEY, {"seen_s": seen_s})
    with (
        pytest.raises(Abandoned, match="the step that began this work has not been heard of for 1800 s"),
        require_heartbeats(store, KEY),
    ):
        pytest.fail("it began")


def test_a_store_that_is_away_for_a_while_is_no_silence(
    terminations: Terminations, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    store: Any = MemoryStore()
    with send_heartbeats(store, KEY, every_s=0.01), require_heartbeats(store, KEY, every_s=0.01):
        failed: list[str] = []
        away = pytest.MonkeyPatch()
        for name in ("put_json", "get_json"):

            def fail(*_: Any, _name: str = name, **__: Any) -> None:
                failed.append(_name)
                raise StoreUnavailable("away")

            away.setattr(store, name, fail)
        wait_until(lambda: failed.count("put_json") > 1 and failed.count("get_json") > 1)
        away.undo()
        clock[0] += 0.6 * SILENCE_S
        wait_until(lambda: store.get_json(KEY)[0]["seen_s"] == clock[0])
    assert not terminations.came.is_set()
