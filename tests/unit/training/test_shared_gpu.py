"""Processes that share a GPU: lack of memory beside others is tried again alone."""

import fcntl
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from flashslm.infra.state_files import locked_file
from flashslm.training.shared_gpu import OutOfMemory, SharedGpu
from tests.waiting import wait_until


def too_large() -> str:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nand more")


def test_what_fits_runs_once(tmp_path: Path) -> None:
    assert SharedGpu(tmp_path).run(lambda: 7) == 7


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no"), RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when")])
def test_lack_of_memory_beside_others_is_tried_again_alone(tmp_path: Path, error: Exception) -> None:
    """Neighbours hold memory that the work needs; the second try begins once they have gone."""
    neighbours, waiting, tried = 2, threading.Barrier(3), threading.Event()
    resident: set[int] = set()
    tries: list[bool] = []

    def neighbour(number: int) -> None:
        with SharedGpu(tmp_path).beside_others():
            resident.add(number)
            waiting.wait()
            tried.wait()
            resident.discard(number)

    def work() -> str:
        crowded = bool(resident)
        tries.append(crowded)
        tried.set()
        if crowded:
            raise error
        return "trained"

    with ThreadPoolExecutor(neighbours) as pool:
        running = [pool.submit(neighbour, number) for number in range(neighbours)]
        waiting.wait()
        assert SharedGpu(tmp_path).run(work) == "trained"
        for future in running:
            future.result()
    assert tries == [True, False]


def is_held(lock: Path) -> bool:
    try:
        with locked_file(lock, fcntl.LOCK_EX | fcntl.LOCK_NB):
            return False
    except BlockingIOError:
        return True


def test_one_that_waits_to_be_alone_is_not_overtaken(tmp_path: Path) -> None:
    gpu, order = SharedGpu(tmp_path), list[str]()
    inside, late_asks = threading.Event(), threading.Event()

    def first() -> None:
        with gpu.beside_others():
            inside.set()
            late_asks.wait()
            time.sleep(0.3)  # in which one that overtakes would be done
            order.append("first")

    def alone() -> None:
        inside.wait()
        with gpu.alone():
            order.append("alone")

    def late() -> None:
        inside.wait()
        wait_until(lambda: is_held(gpu._gate))  # by the one that waits to be alone
        late_asks.set()
        with gpu.beside_others():
            order.append("late")

    with ThreadPoolExecutor(3) as pool:
        for future in [pool.submit(work) for work in (first, alone, late)]:
            future.result()
    assert order == ["first", "alone", "late"]


def test_what_does_not_fit_alone_is_an_error_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(OutOfMemory, match=r"without neighbours too: CUDA out of memory\. Tried to allocate 2 GiB$"):
        SharedGpu(tmp_path).run(too_large)


def test_other_errors_are_not_tried_again(tmp_path: Path) -> None:
    calls = []

    def broken() -> None:
        calls.append(1)
        raise RuntimeError("size mismatch")

    with pytest.raises(RuntimeError, match="size mismatch"):
        SharedGpu(tmp_path).run(broken)
    assert len(calls) == 1
