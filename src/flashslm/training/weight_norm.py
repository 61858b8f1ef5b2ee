"""Weight normalisation by projection after every optimizer step (Nemotron-Flash, section 3.3 and figure 6).

A matrix that reads the residual stream gets rows of unit L2 norm (case 1), one that writes to it unit columns (case 2);
either way the normalised vectors are as long as the hidden size. The embedding, which is also the head, counts as
case 1. Convolutions, norms, biases, decays and meta tokens stay as they are.
"""

from typing import Protocol

import torch
from torch import Tensor, nn

from flashslm.ops.precision import compute_dtype
from flashslm.training.distributed import full_tensor

MIN_NORM = 1e-8


class WeightNormModel(Protocol):
    """A module that says along which dimension each of its weight matrices has unit norm."""

    def weight_norm_axes(self) -> dict[str, int]: ...

    def get_parameter(self, target: str) -> nn.Parameter: ...


@torch.no_grad()
def project_weights_(model: WeightNormModel) -> None:
    """Divide each row (axis 1) or column (axis 0) of the model's weight matrices by its L2 norm, in place.

    Norms are taken in fp32 and clamped at 1e-8, so an all-zero vector stays zero.
    """
    weights, norms = _weights_and_norms(model)
    torch._foreach_div_(weights, torch._foreach_clamp_min(norms, MIN_NORM))


@torch.no_grad()
def weight_norms(model: WeightNormModel) -> dict[str, Tensor]:
    """L2 norms of each weight matrix' rows or columns (one vector a matrix, on the device), by parameter name."""
    _, norms = _weights_and_norms(model)
    return {name: full_tensor(norm).flatten() for name, norm in zip(model.weight_norm_axes(), norms, strict=True)}


def mean_weight_norm(model: WeightNormModel) -> Tensor:
    """Mean norm over all rows and columns of all weight matrices (a scalar on the device); 1 after a projection."""
    return torch.cat(list(weight_norms(model).values())).mean()


def _weights_and_norms(model: WeightNormModel) -> tuple[list[Tensor], list[Tensor]]:
    weights: list[Tensor] = []
    norms: list[Tensor] = []
    for name, axis in model.weight_norm_axes().items():
        weight = model.get_parameter(name)
        weights.append(weight)
        # Six times faster on a CPU than vector_norm, whose reduction over dimension 0 is strided there.
        norms.append(weight.to(compute_dtype(weight)).square().sum(axis, keepdim=True).sqrt())
    return weights, norms
