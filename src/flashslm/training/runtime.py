"""The process-wide settings a run needs and puts back: seeds, determinism, threads, and signals as requests."""

import gc
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch

from flashslm.infra.process import interrupts
from flashslm.infra.storage.errors import StoreUnavailable


@contextmanager
def gc_held() -> Iterator[None]:
    """No garbage collection inside: walking all objects stops the host for up to half a second at any step.

    Steps make no reference cycles that matter. What is garbage before the block goes first; objects that are frozen
    (`infra.process.collection`) stay so, or each training of a search would walk all imports.
    """
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def reproducible(seed: int, threads: int, *, deterministic: bool = True) -> Iterator[None]:
    """Seed torch, use `threads` threads on the CPU and, if asked, deterministic algorithms where there are some."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats its results only with this
    before, warn_only, threads_before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.get_num_threads(),
    )
    debugging: Any = torch.utils.deterministic
    fill = debugging.fill_uninitialized_memory
    with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
        torch.manual_seed(seed)
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=True)
        debugging.fill_uninitialized_memory = False  # costs a pass a buffer
        try:
            yield
        finally:
            debugging.fill_uninitialized_memory = fill
            torch.use_deterministic_algorithms(before, warn_only=warn_only)
            torch.set_num_threads(threads_before)


@contextmanager
def end_as_request() -> Iterator[interrupts.StopRequest]:
    """Let the step in progress finish on SIGTERM, SIGHUP and Ctrl-C; a second Ctrl-C ends the process at once. Without
    effect outside the main thread, which alone receives signals.

    Nothing waits for a service that is away any longer (`interrupts.stop_requested`). A block that goes on to its end
    all the same, or needs the object store while it is away, ends as asked, with Terminated.
    """
    stop = interrupts.StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def request(number: int, frame: FrameType | None) -> None:
        interrupts.second_ends_at_once(number)
        stop.requested = True
        interrupts.request_stop(number)

    with interrupts.handled(request, interrupts.asking_signals()):
        try:
            yield stop
        except StoreUnavailable as error:
            if stop.requested:
                raise interrupts.Terminated(128 + interrupts.requested_by()) from error
            raise
        if stop.requested:
            raise interrupts.Terminated(128 + interrupts.requested_by())


class StepClock:
    """Time spent in steps, with pauses (validation, checkpoints, logging) left out."""

    def __init__(self, total_s: float) -> None:
        self.total_s = total_s
        self._lap_s, self._lap_steps = 0.0, 0
        self._started = time.perf_counter()

    def step(self) -> None:
        self._lap_steps += 1

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Enter only after the device has finished the steps (on CUDA: after reading one of their results)."""
        elapsed = time.perf_counter() - self._started
        self._lap_s, self.total_s = self._lap_s + elapsed, self.total_s + elapsed
        yield
        self._started = time.perf_counter()

    def lap_s(self) -> float:
        """Mean seconds per step since the last lap."""
        mean = self._lap_s / self._lap_steps
        self._lap_s, self._lap_steps = 0.0, 0
        return mean
