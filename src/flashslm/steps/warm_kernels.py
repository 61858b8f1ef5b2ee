"""Compile and tune ahead what a recipe trains: each operator at each width, one step each."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from flashslm.config import OWN_SIZES, ModelConfig, RunConfig, ScalingConfig, SearchConfig, SizeChoice
from flashslm.data.loader import Batch
from flashslm.hardware import pick_device, pick_dtype
from flashslm.models.architecture import Architecture, build_architecture, parse_operators
from flashslm.models.hybrid import HybridLM
from flashslm.models.operator_spec import EXPORTABLE_OPERATORS
from flashslm.ops import kernels
from flashslm.ops.gradient_check import require_right_gradients
from flashslm.training.proxy import proxy_training
from flashslm.training.step import TrainStep

VOCAB_SIZE = 1024  # no kernel depends on it


@dataclass(frozen=True)
class WarmUp:
    """One training step: an architecture with one layer of each operator, and a batch's sizes."""

    architecture: Architecture
    batch: int
    sequence_length: int


def warm_ups(config: RunConfig) -> list[WarmUp]:
    """What `fit_scaling_law`, `search_architecture` and `pretrain` of this recipe run, each once."""
    return list(dict.fromkeys(_warm_ups(config)))


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
