"""The next batch is made while the device computes on this one."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import torch

from flashslm.data.loader import Batch

MakeBatch = Callable[[int], Batch]


class Prefetcher:
    """Batches by their number, on the device. The one behind the last asked for is made in a thread meanwhile.

    They travel as int32 from pinned memory, half the bytes of the int64 they become again on the device; `wait_s` is
    how long the host has waited for batches so far.
    """

    def __init__(self, make: MakeBatch, device: torch.device, pool: ThreadPoolExecutor) -> None:
        self._make, self._device, self._pool = make, device, pool
        self._next: tuple[int, Future[Batch]] | None = None
        self.wait_s = 0.0

    def __call__(self, index: int) -> Batch:
        started = time.perf_counter()
        if self._next is None or self._next[0] != index:
            self._next = (index, self._pool.submit(self._on_host, index))
        host = self._next[1].result()
        self._next = (index + 1, self._pool.submit(self._on_host, index + 1))
        self.wait_s += time.perf_counter() - started
        return Batch(*(tensor.to(self._device, non_blocking=True).long() for tensor in host))

    def _on_host(self, index: int) -> Batch:
        return Batch(*(tensor.int().pin_memory() for tensor in self._make(index)))


@contextmanager
def prefetched(make: MakeBatch, device: torch.device) -> Iterator[MakeBatch]:
    """`make` with its batches prefetched on a GPU; on a CPU the thread would take its time from the step."""
    if device.type != "cuda":
        yield make
        return
    pool = ThreadPoolExecutor(1, thread_name_prefix="batches")
    try:
        yield Prefetcher(make, device, pool)
    finally:
        pool.shutdown(cancel_futures=True)
