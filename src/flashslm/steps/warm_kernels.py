"""Compile and tune ahead what a recipe trains: each operator at each width, one step each."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import NamedTuple

import torch

from flashslm.config import OWN_SIZES, ModelConfig, RunConfig, ScalingConfig, SearchConfig, SizeChoice
from flashslm.data.loader import Batch
from flashslm.hardware import pick_device, pick_dtype
from flashslm.models.architecture import Architecture, build_architecture, parse_operators
from flashslm.models.hybrid import HybridLM
from flashslm.models.operator_spec import EXPORTABLE_OPERATORS
from flashslm.ops import kernels
from flashslm.ops.fused.tuning import NEAR
from flashslm.ops.gradient_check import require_right_gradients
from flashslm.training.proxy import proxy_training
from flashslm.training.side_by_side import side_by_side
from flashslm.training.step import TrainStep

VOCAB_SIZE = 1024  # no kernel depends on it


@dataclass(frozen=True)
class WarmUp:
    """One training step: an architecture with one layer of each operator, and a batch's sizes."""

    architecture: Architecture
    batch: int
    sequence_length: int

    @property
    def width(self) -> int:
        return self.architecture.hidden_size

    def holds(self, other: "WarmUp") -> bool:
        """Whether it has all layers of another one, and more."""
        letters, fewer = self.architecture.operators, other.architecture.operators
        same = self.architecture.model_copy(update={"operators": fewer})
        return set(fewer) < set(letters) and replace(self, architecture=same) == other

    def tunes_for(self, other: "WarmUp") -> bool:
        """Whether kernels that it has tuned are not tuned again in another one."""
        own, its = self.architecture, other.architecture
        sizes = ("head_dim", "mamba_state", "mamba_head_dim", "mamba_expand")
        same = all(getattr(own, size) == getattr(its, size) for size in sizes)
        ratio = max(self.width, other.width) / min(self.width, other.width)
        return same and ratio <= NEAR and set(its.operators) <= set(own.operators)


class Warmed(NamedTuple):
    """One that has run, and what it took."""

    warm_up: WarmUp
    seconds: float


def warm_ups(config: RunConfig) -> list[WarmUp]:
    """What `fit_scaling_law`, `search_architecture` and `pretrain` of this recipe run, each layer once."""
    return each_layer_once(_warm_ups(config))


def each_layer_once(planned: Iterator[WarmUp]) -> list[WarmUp]:
    """Without those whose layers are all in another one."""
    found = list(dict.fromkeys(planned))
    return [one for one in found if not any(other.holds(one) for other in found)]


def warm_all(config: RunConfig, planned: Sequence[WarmUp], workers: int) -> Iterator[Warmed]:
    """Run them, and say each that has ended: alone those that tune kernels, which others would disturb, the rest side
    by side in processes.

    Raises what a step raises, and WorkerKilled.
    """
    alone = tuning(planned)
    for warm_up in alone:
        yield timed(config, warm_up)
    yield from side_by_side(partial(timed, config), [one for one in planned if one not in alone], workers)


def tuning(planned: Sequence[WarmUp]) -> list[WarmUp]:
    """Those that tune for all others, widths in the middle first."""
    middle = median(one.width for one in planned)
    found: list[WarmUp] = []
    for one in sorted(planned, key=lambda one: (abs(one.width - middle), -len(one.architecture.operators))):
        if not any(other.tunes_for(one) for other in found):
            found.append(one)
    return found


def timed(config: RunConfig, warm_up: WarmUp) -> Warmed:
    """`warm`, in this process or in one beside it."""
    started = time.perf_counter()
    warm(config, warm_up)
    return Warmed(warm_up, time.perf_counter() - started)


def one_layer_each(operators: str, width: int, sizes: ModelConfig, batch: int, sequence_length: int) -> WarmUp:
    """Of the operators that a design such as `(DFMF)x6` has."""
    letters = "".join(dict.fromkeys(parse_operators(operators)))
    return WarmUp(build_architecture(letters, width, sizes, VOCAB_SIZE), batch, sequence_length)


def _warm_ups(config: RunConfig) -> Iterator[WarmUp]:
    def at(operators: str, width: int, batch: int, length: int, sizes: SizeChoice = OWN_SIZES) -> WarmUp:
        return one_layer_each(operators, width, sizes.applied_to(config.model), batch, length)

    scaling, search, training = config.scaling, config.search, config.training
    for width in (*scaling.widths, scaling.holdout_width):
        yield at(scaling.block, width, scaling.batch_size, scaling.sequence_length)
    for width in search.widths:
        for sizes in (OWN_SIZES, *search.sizes.each()):
            yield at(EXPORTABLE_OPERATORS, width, search.batch_size, search.sequence_length, sizes)
            for shape in training.batch_shapes:
                yield at(EXPORTABLE_OPERATORS, width, shape.micro_batch_size, shape.sequence_length, sizes)


def warm(config: RunConfig, warm_up: WarmUp) -> None:
    """Run its step on this machine's device."""
    kernels.configure(config.kernels)
    device = pick_device("auto")
    section: ScalingConfig | SearchConfig = config.scaling
    training = proxy_training(section, 1, decay=False)
    precision = pick_dtype("auto", device)
    if device == "cuda":
        require_right_gradients(warm_up.architecture.operators, device, getattr(torch, precision))
    model = HybridLM.build(warm_up.architecture, device)
    step = TrainStep(model, training, precision, weight_norm=True)
    tokens = torch.randint(VOCAB_SIZE, (warm_up.batch, warm_up.sequence_length))
    step.run(0, [Batch(tokens, tokens, torch.zeros_like(tokens))], 1)
