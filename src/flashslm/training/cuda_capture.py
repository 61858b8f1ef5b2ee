"""Work on a GPU that is recorded once as a CUDA graph and then replayed with a single launch."""

from collections.abc import Callable
from functools import cache
from typing import TypeVar

import torch

Result = TypeVar("Result")


@cache  # cuBLAS keeps a workspace for each stream and thread (32 MiB on an H200), and trainings follow each other
def _stream_of(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


class CudaCapture:
    """One stream, on which work runs before it is recorded: what a library keeps for a stream is then there.

    Other threads may use the GPU meanwhile: the one that prefetches batches pins memory.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = _stream_of(device)

    def warm_up(self, work: Callable[[], Result]) -> Result:
        """Run it, in order with what the current stream does before and after."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = work()
        current.wait_stream(self._stream)
        return result

    def record(self, work: Callable[[], Result]) -> tuple[Callable[[], None], Result]:
        """Record it without running it; returns what replays it, and the tensors that a replay fills.

        What it allocates stays reserved for replays as long as the first of the two lives. Any error of `work`, and
        RuntimeError where it waits for the device, which a recording cannot.
        """
        torch.cuda.synchronize()
        torch.cuda.empty_cache()  # what the warm-up used is about to be reserved a second time
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        with torch.cuda.stream(self._stream):
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                result = work()
            finally:
                self._end(graph, pool)
        return graph.replay, result

    def _end(self, graph: torch.cuda.CUDAGraph, pool: tuple[int, int]) -> None:
        try:
            graph.capture_end()
        except RuntimeError:
            # torch then leaves the pool open, and an open pool keeps the allocator from giving memory back.
            torch._C._cuda_endAllocateToPool(self._stream.device_index, pool)
            torch._C._cuda_releasePool(self._stream.device_index, pool)
            self._free_generator()
            raise

    def _free_generator(self) -> None:
        """Record what ends well: after a recording that failed, torch 2.11 draws no random number on the GPU."""
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(capture_error_mode="thread_local")
        torch.zeros(1, device=self._stream.device)
        graph.capture_end()
