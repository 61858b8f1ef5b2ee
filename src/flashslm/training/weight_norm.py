"""Weight normalisation by projection after every optimizer step (Nemotron-Flash, section 3.3 and figure 6).

A matrix that reads the residual stream gets rows of unit L2 norm (case 1), one that writes to it unit columns (case 2);
either way the normalised vectors are as long as the hidden size. The embedding, which is also the head, counts as
case 1. Convolutions, norms, biases, decays and meta tokens stay as they are.
"""

from typing import Protocol

import torch
from torch import Tensor, nn

from flashslm.ops.precision import compute_dtype
from flashslm.training.distributed import current_world, full_tensor, local_tensor, sum_over_ranks

MIN_NORM = 1e-8


class WeightNormModel(Protocol):
    """A module that says along which dimension each of its weight matrices has unit norm."""

    def weight_norm_axes(self) -> dict[str, int]: ...

    def get_parameter(self, target: str) -> nn.Parameter: ...


@torch.no_grad()
def project_weights_(model: WeightNormModel) -> None:
    """Divide each row (axis 1) or column (axis 0) of the model's weight matrices by its L2 norm, in place.

    Norms are taken in fp32 and clamped at 1e-8, so an all-zero vector stays zero. Whole fp32 matrices on CUDA take one
    pass over memory, by Triton. Of matrices sharded by rows the columns' sums cross the ranks in one all-reduce.
    """
    axes = model.weight_norm_axes()
    weights = [local_tensor(model.get_parameter(name)) for name in axes]
    if current_world().size == 1 and all(_fits_kernel(weight) for weight in weights):
        from flashslm.ops.fused.weight_norm import project_triton_

        project_triton_(weights, list(axes.values()))
        return
    sums = [_squares(weight, axis) for weight, axis in zip(weights, axes.values(), strict=True)]
    _sum_columns_over_ranks(sums, list(axes.values()))
    torch._foreach_div_(weights, torch._foreach_clamp_min([total.sqrt() for total in sums], MIN_NORM))


def _fits_kernel(weight: Tensor) -> bool:
    return weight.is_cuda and weight.dtype == torch.float32 and weight.is_contiguous()


def _squares(weight: Tensor, axis: int) -> Tensor:
    # Six times faster on a CPU than vector_norm, whose reduction over dimension 0 is strided there.
    return weight.to(compute_dtype(weight)).square().sum(axis, keepdim=True)


def _sum_columns_over_ranks(sums: list[Tensor], axes: list[int]) -> None:
    """In place. Rows are whole on the rank that has them; a column is spread over all ranks."""
    columns = [total for total, axis in zip(sums, axes, strict=True) if axis == 0]
    if current_world().size == 1 or not columns:
        return
    together = sum_over_ranks(torch.cat([total.flatten() for total in columns]))
    for total, whole in zip(columns, together.split([total.numel() for total in columns]), strict=True):
        total.copy_(whole.view_as(total))


@torch.no_grad()
def weight_norms(model: WeightNormModel) -> dict[str, Tensor]:
    """L2 norms of each weight matrix' rows or columns (one vector a matrix, on the device), by parameter name."""
    _, norms = _weights_and_norms(model)
    return {name: full_tensor(norm).flatten() for name, norm in zip(model.weight_norm_axes(), norms, strict=True)}


def mean_weight_norm(model: WeightNormModel) -> Tensor:
    """Mean norm over all rows and columns of all weight matrices (a scalar on the device); 1 after a projection."""
    return torch.cat(list(weight_norms(model).values())).mean()


def _weights_and_norms(model: WeightNormModel) -> tuple[list[Tensor], list[Tensor]]:
    axes = model.weight_norm_axes()
    weights: list[Tensor] = [model.get_parameter(name) for name in axes]
    return weights, [_squares(w, axis).sqrt() for w, axis in zip(weights, axes.values(), strict=True)]
