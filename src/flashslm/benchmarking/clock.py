"""Clocks: decode steps one by one and as a whole, prefill up to the token on the host."""

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from flashslm.benchmarking.case import WARM_UP_STEPS
from flashslm.hardware import DeviceKind


class Decoder(Protocol):
    """What is timed: both engines have it."""

    def prefill(self, tokens_BT: Tensor) -> Tensor:
        """Start again on prompts; the first tokens [B]."""

    def advance(self) -> object:
        """One decode step on the tokens of the one before, sampling included; does not wait for the device."""


class StepTimes(BaseModel):
    """Milliseconds; a step gives each sequence one token.

    `tpot_ms_median` and `_p90` are over all steps of all repeats, `tpot_ms_mean` is from a separate run, timed as a
    whole.
    """

    model_config = ConfigDict(frozen=True)

    tpot_ms_median: float
    tpot_ms_p90: float
    tpot_ms_mean: float
    tpot_ms_median_repeats: tuple[float, ...]


class DecodeTimes(StepTimes):
    """`ttft_ms` is the median of `ttft_ms_repeats`."""

    ttft_ms: float
    ttft_ms_repeats: tuple[float, ...]


def time_decoder(
    decoder: Decoder, prompts_BT: Tensor, new_tokens: int, repeats: int, device: DeviceKind
) -> DecodeTimes:
    """Time prefills and the `new_tokens` steps after each; a first run of both does not count."""
    ttft_ms: list[float] = []
    times = time_steps(
        lambda: ttft_ms.append(prefill_ms(decoder, prompts_BT, device)), decoder.advance, new_tokens, repeats, device
    )
    counted = tuple(ttft_ms[1:])
    return DecodeTimes(**times.model_dump(), ttft_ms=float(np.median(counted)), ttft_ms_repeats=counted)


def time_steps(
    restart: Callable[[], object], step: Callable[[], object], new_tokens: int, repeats: int, device: DeviceKind
) -> StepTimes:
    """Time `repeats` runs of `new_tokens` steps one by one, and one as a whole; `restart` begins each run."""
    restart()
    for _ in range(WARM_UP_STEPS):
        step()
    samples_ms = []
    for _ in range(repeats):
        restart()
        samples_ms.append(step_times_ms(step, new_tokens, device))
    restart()
    return StepTimes(
        tpot_ms_median=float(np.median(samples_ms)),
        tpot_ms_p90=float(np.percentile(samples_ms, 90)),
        tpot_ms_mean=whole_time_ms(step, new_tokens, device) / new_tokens,
        tpot_ms_median_repeats=tuple(float(np.median(samples)) for samples in samples_ms),
    )


def prefill_ms(decoder: Decoder, prompts_BT: Tensor, device: DeviceKind) -> float:
    """From prompts on the host to first tokens on the host."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    decoder.prefill(prompts_BT).cpu()
    return 1e3 * (time.perf_counter() - start)


def step_times_ms(step: Callable[[], object], steps: int, device: DeviceKind) -> list[float]:
    """Every step's time. On CUDA events stand between the steps and the host waits once, after the last."""
    if device == "cpu":
        times = [time.perf_counter()]
        for _ in range(steps):
            step()
            times.append(time.perf_counter())
        return [1e3 * (end - start) for start, end in pairwise(times)]
    events = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)]
    events[0].record()
    for event in events[1:]:
        step()
        event.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) for start, end in pairwise(events)]


def whole_time_ms(step: Callable[[], object], steps: int, device: DeviceKind) -> float:
    """All steps together, with nothing between them."""

    def run() -> None:
        for _ in range(steps):
            step()

    return step_times_ms(run, 1, device)[0]
