"""The steps that a training benchmark times, ours or a library's, and their times."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from flashslm.data.loader import Batch
from flashslm.hardware import DeviceKind, device_fingerprint, peak
from flashslm.models.accounting import training_flops_per_token
from flashslm.models.architecture import Architecture
from flashslm.training.prefetch import Prefetcher, prefetched

PARTS = ("forward", "backward", "update", "weight_norm")


@dataclass(frozen=True)
class TrainingCase:
    """`batch` sequences of `sequence_length` tokens in a micro-batch of one process. ValueError: a size is off.

    A timed step has one micro-batch; the first ones, whose losses are compared, have `micro_batches`.
    """

    preset: str
    architecture: Architecture
    sequence_length: int
    batch: int
    steps: int
    device: DeviceKind
    precision: Literal["float32", "bfloat16"]
    deterministic: bool = False
    micro_batches: int = 1
    gather_dtype: Literal["float32", "bfloat16"] = "float32"  # of weights that several processes send each other
    shard_processes: int = 0  # that hold a copy of the model together; 0: all

    def __post_init__(self) -> None:
        sizes = {name: getattr(self, name) for name in ("batch", "steps", "micro_batches")}
        problems = [f"{name} is {value}: at least 1" for name, value in sizes.items() if value < 1]
        room = self.architecture.max_position_embeddings - self.architecture.num_meta_tokens
        if not 8 <= self.sequence_length <= room:
            problems.append(f"sequence_length is {self.sequence_length}: from 8 to the {room} positions of the model")
        if problems:
            raise ValueError("; ".join(problems))

    @property
    def tokens(self) -> int:
        """Tokens of a process' timed step."""
        return self.batch * self.sequence_length

    @property
    def flops_per_token(self) -> float:
        """Forward and backward, at the mean causal reach of a window behind the meta tokens."""
        return training_flops_per_token(self.architecture, self.sequence_length)


class StepSpeed(BaseModel):
    """Times of one variant; `parts_ms` are medians on the device, `loader_wait_ms` is the host's mean for a batch.

    `mfu` is flops_per_token x tokens_per_s / the data sheet's bf16 peak; None where no peak is known, or in fp32.
    """

    model_config = ConfigDict(frozen=True)

    step_ms_median: float
    step_ms_p90: float
    tokens_per_s: float
    tflops_per_s: float
    mfu: float | None
    parts_ms: dict[str, float]
    loader_wait_ms: float
    loss_nats: float


class Trained:
    """What is timed: a step in parts, each of which returns without waiting for the device."""

    def __init__(self, forward: Callable[[Batch], Tensor], update: Callable[[], object], project: Callable[[], object]):
        self.forward, self.update, self.project = forward, update, project


def step_times(case: TrainingCase, trained: Trained, steps: int) -> StepSpeed:
    """Run steps on random tokens that come as the trainer's do."""
    device = torch.device(case.device)
    marks: list[list[Any]] = []
    wait_s = 0.0
    with prefetched(lambda index: random_batch(case, index), device) as batches:
        for index in range(steps):
            started = time.perf_counter()
            batch = batches(index)
            wait_s += 0.0 if isinstance(batches, Prefetcher) else time.perf_counter() - started
            marks.append([mark(case.device)])
            loss = trained.forward(batch)
            for part in (loss.backward, trained.update, trained.project):
                marks[-1].append(mark(case.device))
                part()
            marks[-1].append(mark(case.device))
        wait_s += batches.wait_s if isinstance(batches, Prefetcher) else 0.0
        end = mark(case.device)
        loss_nats = loss.item()
    return _speed(case, [*marks, [end]], 1e3 * wait_s / steps, loss_nats)


def _speed(case: TrainingCase, marks: list[list[Any]], wait_ms: float, loss_nats: float) -> StepSpeed:
    rows = marks[:-1]
    step_ms = [between_ms(row[0], after[0]) for row, after in zip(rows, marks[1:], strict=True)]
    parts = {name: [between_ms(row[i], row[i + 1]) for row in rows] for i, name in enumerate(PARTS)}
    tokens_per_s = 1e3 * case.tokens / float(np.median(step_ms))
    known = peak_flops_per_s(case)
    return StepSpeed(
        step_ms_median=float(np.median(step_ms)),
        step_ms_p90=float(np.percentile(step_ms, 90)),
        tokens_per_s=tokens_per_s,
        tflops_per_s=case.flops_per_token * tokens_per_s / 1e12,
        mfu=case.flops_per_token * tokens_per_s / known if known else None,
        parts_ms={name: float(np.median(times)) for name, times in parts.items()},
        loader_wait_ms=wait_ms,
        loss_nats=loss_nats,
    )


def random_batch(case: TrainingCase, index: int) -> Batch:
    """Random tokens of one document a row, int64 on the host."""
    generator = torch.Generator().manual_seed(index)
    shape = (case.batch, case.sequence_length + 1)
    windows = torch.randint(case.architecture.vocab_size, shape, generator=generator)
    return Batch(windows[:, :-1].contiguous(), windows[:, 1:].contiguous(), torch.zeros_like(windows[:, 1:]))


def peak_flops_per_s(case: TrainingCase) -> float | None:
    known = peak(device_fingerprint(case.device).gpu) if case.device == "cuda" else None
    return known.flops_per_s if known and case.precision == "bfloat16" else None


def mark(device: DeviceKind) -> Any:
    """A moment: an event on the device's stream, or the host's clock."""
    if device == "cpu":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def between_ms(start: Any, end: Any) -> float:
    """Milliseconds; waits for the device."""
    if isinstance(start, float):
        return 1e3 * float(end - start)
    end.synchronize()
    return float(start.elapsed_time(end))
