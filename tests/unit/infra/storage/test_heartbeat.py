"""A worker stops when the step that it works for is gone."""

import signal
import threading
import time
from typing import Any

import pytest

from flashslm.infra.storage.heartbeat import Abandoned, require_heartbeats, send_heartbeats
from flashslm.infra.storage.s3 import StoreUnavailable
from tests.unit.launch.schedule.memory_store import MemoryStore

KEY = "heartbeat.json"


class Terminations:
    """Counts SIGTERMs in place of ending the process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.came = threading.Event()
        monkeypatch.setattr("os.kill", lambda pid, number: number == signal.SIGTERM and self.came.set())


@pytest.fixture
def terminations(monkeypatch: pytest.MonkeyPatch) -> Terminations:
    return Terminations(monkeypatch)


def test_work_goes_on_while_a_step_waits_and_stops_afterwards(terminations: Terminations) -> None:
    store: Any = MemoryStore()
    with send_heartbeats(store, KEY, every_s=0.02), require_heartbeats(store, KEY, every_s=0.02, silence_s=0.5):
        assert not terminations.came.wait(1.0)
        with_waiting_ended = store.get_json(KEY)[0]["seen_s"]
    assert time.time() - with_waiting_ended < 0.5
    with require_heartbeats(store, KEY, every_s=0.02, silence_s=0.5):
        assert terminations.came.wait(5.0)


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
    terminations: Terminations, monkeypatch: pytest.MonkeyPatch
) -> None:
    store: Any = MemoryStore()
    with send_heartbeats(store, KEY, every_s=0.02), require_heartbeats(store, KEY, every_s=0.02, silence_s=0.3):
        away = pytest.MonkeyPatch()

        def fail(*_: Any, **__: Any) -> None:
            raise StoreUnavailable("away")

        away.setattr(store, "put_json", fail)
        away.setattr(store, "get_json", fail)
        time.sleep(0.1)
        away.undo()
        assert not terminations.came.wait(0.5)
