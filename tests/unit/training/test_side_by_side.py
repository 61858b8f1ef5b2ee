"""Workers beside each other that are asked to end: none takes another item."""

import os
import signal
import threading
import time
from multiprocessing import active_children
from pathlib import Path

import pytest

from flashslm.infra.process.interrupts import Terminated, terminable
from flashslm.training.runtime import end_as_request
from flashslm.training.side_by_side import side_by_side
from tests.waiting import wait_until

WORKERS, ITEMS = 2, 6


def train(begun: Path) -> None:
    """As a training does: SIGTERM lets the step in progress end. It also ends once there is one too many."""
    with end_as_request() as stop:
        begun.touch()
        while not stop.requested and count(begun.parent) <= WORKERS:
            time.sleep(0.01)


def count(directory: Path) -> int:
    return len(list(directory.iterdir()))


def test_workers_that_train_end_with_the_item_that_they_have(tmp_path: Path) -> None:
    items = [tmp_path / str(number) for number in range(ITEMS)]

    def ask() -> None:
        wait_until(lambda: count(tmp_path) == WORKERS)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=ask)
    thread.start()
    with pytest.raises(Terminated), terminable():
        list(side_by_side(train, items, WORKERS))
    thread.join()
    assert count(tmp_path) == WORKERS and not active_children()


def threads(_: int) -> tuple[str, str]:
    return os.environ["OMP_NUM_THREADS"], os.environ["TORCHINDUCTOR_COMPILE_THREADS"]


def test_workers_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flashslm.hardware.usable_cores", lambda: 9)
    for name in ("OMP_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS"):
        monkeypatch.delenv(name, raising=False)
    assert list(side_by_side(threads, [0, 1, 2], WORKERS)) == [("4", "4")] * 3
    assert "OMP_NUM_THREADS" not in os.environ  # this process keeps its own
