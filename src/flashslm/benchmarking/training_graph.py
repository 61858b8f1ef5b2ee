"""A training step launched kernel by kernel beside the same step recorded as one CUDA graph."""

import time
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from flashslm.benchmarking import memory
from flashslm.benchmarking.training_steps import TrainingCase, between_ms, mark, random_batch
from flashslm.training.prefetch import prefetched
from flashslm.training.step import TrainStep
from flashslm.training.step_graph import WARM_UP_STEPS, StepGraph, not_recordable

PROFILED_STEPS = 5


class WholeStep(BaseModel):
    """A form of the step, weight normalisation included.

    `busy_share` is what kernels and copies take of a median step, by torch.profiler in steps of its own; None on a CPU.
    `reserved_bytes` is what the allocator holds after the steps: a recorded step's memory stays reserved.
    """

    model_config = ConfigDict(frozen=True)

    step_ms_median: float
    step_ms_p90: float
    tokens_per_s: float
    busy_share: float | None
    reserved_bytes: int | None


class GraphComparison(BaseModel):
    """`record_s` is what the step that is recorded took; `speed_up` the plain median over the recorded one's."""

    model_config = ConfigDict(frozen=True)

    plain: WholeStep
    graph: WholeStep
    record_s: float
    speed_up: float


def require_recordable(step: TrainStep) -> None:
    """ValueError where such steps are not recorded."""
    if why := not_recordable(step):
        raise ValueError(f"--graph: a step cannot be recorded here: {why}")


def compare_graph(case: TrainingCase, step: TrainStep) -> GraphComparison:
    """Time `case.steps` whole steps of both forms. ValueError where recording fails."""
    number, device = step.config.warmup_steps, torch.device(case.device)
    graph = StepGraph(step)
    memory.release(case.device)
    with prefetched(lambda index: random_batch(case, index), device) as batches:
        plain = _measured(case, lambda index: step.run(number, [batches(index)], 1))

        def recorded(index: int) -> object:
            return graph.run(number, [batches(index)], 1)

        memory.release(case.device)
        record_s = _record_s(recorded, device)
        if graph.problem:
            raise ValueError(f"--graph: the step could not be recorded: {graph.problem}")
        found = _measured(case, recorded)
    speed_up = plain.step_ms_median / found.step_ms_median
    return GraphComparison(plain=plain, graph=found, record_s=record_s, speed_up=speed_up)


def _record_s(run: Callable[[int], object], device: torch.device) -> float:
    for index in range(WARM_UP_STEPS):
        run(index)
    _wait(device)
    started = time.perf_counter()
    run(WARM_UP_STEPS)
    _wait(device)
    return time.perf_counter() - started


def _measured(case: TrainingCase, run: Callable[[int], object]) -> WholeStep:
    for index in range(WARM_UP_STEPS):
        run(index)
    marks = []
    for index in range(case.steps):
        marks.append(mark(case.device))
        run(index)
    marks.append(mark(case.device))
    times_ms = [between_ms(start, end) for start, end in pairwise(marks)]
    median_ms, on_gpu = float(np.median(times_ms)), case.device == "cuda"
    return WholeStep(
        step_ms_median=median_ms,
        step_ms_p90=float(np.percentile(times_ms, 90)),
        tokens_per_s=1e3 * case.tokens / median_ms,
        busy_share=_busy_ms(run) / median_ms if on_gpu else None,
        reserved_bytes=torch.cuda.memory_reserved() if on_gpu else None,
    )


def _busy_ms(run: Callable[[int], object]) -> float:
    """Time of a step's kernels and copies on the device: one stream runs them one after the other."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        for index in range(PROFILED_STEPS):
            run(index)
        torch.cuda.synchronize()
    events = [event for event in profiled.events() if event.device_type.name == "CUDA"]
    busy_us = [event.device_time_total for event in events if not getattr(event, "is_user_annotation", False)]
    return float(sum(busy_us)) / 1e3 / PROFILED_STEPS


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
