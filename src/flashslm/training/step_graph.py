"""A whole optimizer step as one CUDA graph: models whose kernels are shorter than their launches need it.

The plain `TrainStep` is what the graph records, and the form to compare it with.
"""

import logging
from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

import torch

from flashslm.data.loader import Batch
from flashslm.hardware import peak
from flashslm.models.accounting import training_flops_per_token
from flashslm.models.architecture import Architecture
from flashslm.ops import kernels
from flashslm.training.cuda_capture import CudaCapture
from flashslm.training.distributed import current_world
from flashslm.training.optimizer import capturable, keep_rate_on_device
from flashslm.training.step import StepResult, TrainStep

WARM_UP_STEPS = 3  # of a batch shape: kernels are compiled, tuned and chosen before anything is recorded
# What launching a layer, forward and backward, takes the host: 94 to 170 ms for 8 to 16 of them (docs/log.md,
# 2026-11-27, proxies on an H200).
LAUNCH_MS_PER_LAYER = 10.0
ASSUMED_MFU = 0.4
STEP_FORM = "training step"  # under this name a run's record says which form ran
_log = logging.getLogger(__name__)

Result = TypeVar("Result")


class Capture(Protocol):
    """How work is run before it is recorded, and recorded: `CudaCapture`."""

    def warm_up(self, work: Callable[[], Result]) -> Result: ...

    def record(self, work: Callable[[], Result]) -> tuple[Callable[[], None], Result]: ...


class StepGraph:
    """Runs a TrainStep, recorded after WARM_UP_STEPS plain steps of a batch shape, which train like any other.

    Batches are copied to fixed addresses, the learning rate is a tensor; weights, moments and step counts are updated
    in place, so that validation and checkpoints between two steps see them. Other shapes are recorded in place of the
    earlier ones. Where recording fails, `problem` says why, and this and all later steps run plainly.
    """

    def __init__(self, step: TrainStep, capture: Capture | None = None) -> None:
        self.step, self.problem = step, ""
        self._capture = capture or CudaCapture(step.device)
        self._inputs: list[Batch] = []
        self._warmed_up = 0
        self._recorded: tuple[Callable[[], None], StepResult] | None = None
        keep_rate_on_device(step.optimizer, step.device)

    def run(self, number: int, batches: Iterable[Batch], count: int) -> StepResult:
        """As TrainStep's; the result of a replayed step is overwritten by the next one."""
        if self.problem:
            return self.step.run(number, batches, count)
        self._fill(list(batches))
        self.step.begin(number)
        if self._warmed_up < WARM_UP_STEPS:
            self._warmed_up += 1
            return self._capture.warm_up(self._whole)
        self._recorded = self._recorded or self._record()
        if self._recorded is None:
            return self._whole()
        replay, result = self._recorded
        replay()
        return result

    def _whole(self) -> StepResult:
        return self.step.whole(self._inputs, len(self._inputs))

    def _fill(self, batches: list[Batch]) -> None:
        """Copy the micro-batches to where the recorded step reads them."""
        if _shapes(batches) != _shapes(self._inputs):
            self._recorded, self._warmed_up = None, 0
            self._inputs = [_empty_like(batch, self.step.device) for batch in batches]
        for fixed, batch in zip(self._inputs, batches, strict=True):
            for target, source in zip(fixed, batch, strict=True):
                target.copy_(source, non_blocking=True)

    def _record(self) -> tuple[Callable[[], None], StepResult] | None:
        try:
            with capturable(self.step.optimizer):
                recorded = self._capture.record(self._whole)
        except Exception as error:  # whatever a kernel or a library does not allow in a recording
            self.problem = _first_cause(error)
            self.step.optimizer.zero_grad(set_to_none=True)  # they were recorded, not computed
            _stay_plain(logging.WARNING, f"the step could not be recorded: {self.problem}")
            return None
        kernels.note(STEP_FORM, "CUDA graph")
        return recorded


def graphed(step: TrainStep) -> TrainStep | StepGraph:
    """The step as `cuda_graph`, on or auto, wants it; where it stays plain, a line of the log says why."""
    wanted = step.config.cuda_graph
    why = not_recordable(step)
    if not why and wanted == "auto":
        why = _not_launch_bound(step)
    if not why:
        return StepGraph(step)
    _stay_plain(logging.WARNING if wanted == "on" else logging.INFO, why)
    return step


def not_recordable(step: TrainStep) -> str:
    """Why no graph can be made of such steps; empty where nothing known prevents it."""
    if step.device.type != "cuda":
        return f"the model is on {step.device.type}"
    if current_world().size > 1:
        return "several processes train together"
    if step.config.isolate_documents:
        return "isolate_documents reads the documents' lengths from the device in every step"
    if "W" in step.model.architecture.operators:
        return "window attention (W) reads its rows' lengths from the device in every step"
    return ""


def is_launch_bound(
    architecture: Architecture, micro_batch_size: int, sequence_length: int, peak_flops_per_s: float
) -> bool:
    """Whether the device has computed a micro-batch in less than half the time that the host takes to launch it.

    Estimates: the model's FLOP at ASSUMED_MFU of the data sheet's bf16 peak, LAUNCH_MS_PER_LAYER for the host.
    """
    flops = micro_batch_size * sequence_length * training_flops_per_token(architecture, sequence_length)
    device_ms = 1e3 * flops / (ASSUMED_MFU * peak_flops_per_s)
    return device_ms < 0.5 * LAUNCH_MS_PER_LAYER * len(architecture.operators)


def _not_launch_bound(step: TrainStep) -> str:
    name = torch.cuda.get_device_name(step.device)
    known = peak(name)
    if known is None:
        return f"auto does not know how fast '{name}' is"
    largest = max(step.config.batch_shapes, key=lambda shape: shape.micro_batch_size * shape.sequence_length)
    sizes = (largest.micro_batch_size, largest.sequence_length)
    if is_launch_bound(step.model.architecture, *sizes, known.flops_per_s):
        return ""
    return f"{sizes[0]} sequences of {sizes[1]} tokens keep '{name}' busy"


def _stay_plain(level: int, why: str) -> None:
    _log.log(level, "cuda_graph: steps run plainly: %s", why)
    kernels.note(STEP_FORM, "plain")


def _shapes(batches: list[Batch]) -> list[torch.Size]:
    return [batch.tokens_BT.shape for batch in batches]


def _empty_like(batch: Batch, device: torch.device) -> Batch:
    return Batch(*(torch.empty_like(tensor, device=device) for tensor in batch))


def _first_cause(error: BaseException) -> str:
    """The first line of the error that came first: after it, ending the recording fails too."""
    while error.__context__ is not None:
        error = error.__context__
    return f"{type(error).__name__}: {error}".splitlines()[0]
