"""Time short steps on a CPU or a GPU: median and spread of many samples."""

import math
import random
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np

from flashslm.hardware import DeviceKind

# A sample repeats the step until it takes this long: well above the clock's resolution, on a GPU 0.5 us an event.
MIN_SAMPLE_MS: dict[DeviceKind, float] = {"cpu": 0.2, "cuda": 1.0}
CUDA_SETTLING_SAMPLES = 10  # not counted: a GPU that waited for a compiler has lowered its clock
CPU_ROUNDS = 3  # a CPU is shared and changes its clock: samples of one step are spread over the whole measurement
CPU_ROUNDS_KEPT = 10

TimedCall = Callable[[], object]
G = TypeVar("G", bound=Hashable)
K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call over `repeats` samples."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    repeats: int


def measure(step: TimedCall, warmup: int, repeats: int, device: DeviceKind) -> Timing:
    """Time one step: `warmup` calls that do not count, then `repeats` samples (CUDA events or the monotonic clock)."""
    return _summary(samples_ms(step, warmup, repeats, device))


def measure_rounds(
    builds: Mapping[G, Callable[[], Sequence[tuple[K, TimedCall]]]],
    warmup: int,
    repeats: int,
    device: DeviceKind,
    *,
    keep: bool,
) -> dict[K, Timing]:
    """Time groups of steps in rounds of shuffled order, so that slow drift of the machine meets all of them alike.

    The steps of one group run in turn, each timed apart: they find caches and branch predictors as their neighbours
    leave them. With `keep` all groups are built once and many rounds are made; without it a group is built whenever its
    turn comes, one being in memory at a time, for few rounds. A GPU is not shared: one round is enough there, and each
    step of a group is timed by itself.
    """
    rounds = 1 if device == "cuda" else min(CPU_ROUNDS_KEPT if keep else CPU_ROUNDS, repeats)
    kept = {group: build() for group, build in builds.items()} if keep and device == "cpu" else {}
    order, rng = list(builds), random.Random(0)
    samples: dict[K, list[float]] = {}
    for _ in range(rounds):
        rng.shuffle(order)
        for group in order:
            steps = list(kept.get(group) or builds[group]())
            for key, values in _group_samples_ms(steps, warmup, math.ceil(repeats / rounds), device, rng):
                samples.setdefault(key, []).extend(values)
            del steps  # before the next group takes memory
    return {key: _summary(values) for key, values in samples.items()}


@contextmanager
def cpu_threads(threads: int) -> Iterator[None]:
    """Run the body with this many CPU threads in torch."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _group_samples_ms(
    steps: list[tuple[K, TimedCall]], warmup: int, repeats: int, device: DeviceKind, rng: random.Random
) -> Iterator[tuple[K, list[float]]]:
    """Samples of every step of a group; on a CPU several steps are called once per pass, in an order of its own."""
    if len(steps) == 1 or device == "cuda":
        for key, step in steps:
            yield key, samples_ms(step, warmup, repeats, device)
        return
    clock = _samples_clock(device)
    for number in range(-warmup, repeats):
        rng.shuffle(steps)
        for key, step in steps:
            values = clock(step, 1, 1)
            if number >= 0:
                yield key, values


def samples_ms(step: TimedCall, warmup: int, repeats: int, device: DeviceKind) -> list[float]:
    """Milliseconds a call, one value a sample."""
    for _ in range(warmup):
        step()
    clock = _samples_clock(device)
    calls = math.ceil(MIN_SAMPLE_MS[device] / max(min(clock(step, 1, 3)), 1e-6))
    if device == "cuda":
        clock(step, calls, CUDA_SETTLING_SAMPLES)
    return clock(step, calls, repeats)


def _samples_clock(device: DeviceKind) -> Callable[[TimedCall, int, int], list[float]]:
    return _cuda_samples_ms if device == "cuda" else _cpu_samples_ms


def _cpu_samples_ms(step: TimedCall, calls: int, repeats: int) -> list[float]:
    """With one thread the clock is that thread's CPU time: what other processes take meanwhile is not the model's."""
    import torch

    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    samples = []
    for _ in range(repeats):
        start = clock()
        for _ in range(calls):
            step()
        samples.append(1e3 * (clock() - start) / calls)
    return samples


def _cuda_samples_ms(step: TimedCall, calls: int, repeats: int) -> list[float]:
    """All samples are queued before the host waits, so that the device does not idle between them."""
    import torch

    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    events[0].record()
    for event in events[1:]:
        for _ in range(calls):
            step()
        event.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / calls for start, end in pairwise(events)]


def _summary(samples_ms: list[float]) -> Timing:
    p10, median, p90 = np.percentile(samples_ms, [10, 50, 90])
    return Timing(float(median), float(p10), float(p90), len(samples_ms))
