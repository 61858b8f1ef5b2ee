"""Linear layers that share their input, run as one matrix product where that pays."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ALIGNED = 8  # channels that a training's rows are filled up to: products on tensor cores want rows of 16 bytes


def project_together(x: Tensor, *layers: nn.Linear, aligned: bool = False) -> Tensor:
    """The outputs of bias-free layers behind each other, [..., sum of their sizes].

    In training on CUDA it is one product: the weights stay parameters of their own, and joining them is part of the
    pass that rounds them. One product reads x once, and its gradient needs no sum. Without gradients weights are not
    copied: it is one product where they lie behind each other, as those of a decode engine do. A CPU gains nothing.

    With `aligned` a training's rows end with zeros, up to a multiple of ALIGNED.
    """
    if x.is_cuda and torch.is_grad_enabled():
        return F.linear(x, join_rows([layer.weight for layer in layers], ALIGNED if aligned else 1))
    if x.is_cuda and (joined := adjacent_rows([layer.weight for layer in layers])) is not None:
        return F.linear(x, joined)
    return torch.cat([layer(x) for layer in layers], dim=-1)


def join_rows(weights: Sequence[Tensor], multiple: int = 1) -> Tensor:
    """Matrices [R, D] behind each other, and rows of zeros behind them up to a multiple of so many."""
    missing = -sum(weight.shape[0] for weight in weights) % multiple
    zeros = [weights[0].new_zeros(missing, weights[0].shape[1])] if missing else []
    return torch.cat([*weights, *zeros])


def project_each(x: Tensor, *layers: nn.Linear) -> tuple[Tensor, ...]:
    """The same outputs, apart."""
    if x.is_cuda and torch.is_grad_enabled():
        return torch.split(project_together(x, *layers), [layer.out_features for layer in layers], dim=-1)
    return tuple(layer(x) for layer in layers)


def adjacent_rows(weights: Sequence[Tensor]) -> Tensor | None:
    """Matrices [R, D] as one, without a copy, if each begins in memory where the one before it ends; else None."""
    first, end = weights[0], weights[0].data_ptr()
    for weight in weights:
        if weight.data_ptr() != end or weight.untyped_storage().data_ptr() != first.untyped_storage().data_ptr():
            return None
        end += weight.numel() * weight.element_size()
    if not first.is_contiguous():
        return None
    rows, size = sum(weight.shape[0] for weight in weights), first.shape[1]
    return first.detach().as_strided((rows, size), (size, 1))
