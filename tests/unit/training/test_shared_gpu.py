"""Processes that share a GPU: lack of memory beside others is tried again alone."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from flashslm.training.shared_gpu import OutOfMemory, SharedGpu


def too_large() -> str:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nand more")


def test_what_fits_runs_once(tmp_path: Path) -> None:
    assert SharedGpu(tmp_path).run(lambda: 7) == 7


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no"), RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when")])
def test_lack_of_memory_beside_others_is_tried_again_alone(tmp_path: Path, error: Exception) -> None:
    """Neighbours hold memory that the work needs; the second try begins once they have gone."""
    neighbours, waiting = 2, threading.Barrier(3)
    resident: set[int] = set()

    def neighbour(number: int) -> None:
        with SharedGpu(tmp_path).beside_others():
            resident.add(number)
            waiting.wait()
            time.sleep(0.1)
            resident.discard(number)

    def work() -> str:
        if resident:
            raise error
        return "trained"

    with ThreadPoolExecutor(neighbours) as pool:
        running = [pool.submit(neighbour, number) for number in range(neighbours)]
        waiting.wait()
        assert SharedGpu(tmp_path).run(work) == "trained"
        for future in running:
            future.result()


def test_one_that_waits_to_be_alone_is_not_overtaken(tmp_path: Path) -> None:
    gpu, order, inside = SharedGpu(tmp_path), list[str](), threading.Event()

    def first() -> None:
        with gpu.beside_others():
            inside.set()
            time.sleep(0.3)
            order.append("first")

    def alone() -> None:
        inside.wait()
        with gpu.alone():
            order.append("alone")

    def late() -> None:
        inside.wait()
        time.sleep(0.1)
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
