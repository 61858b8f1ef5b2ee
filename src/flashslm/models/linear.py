"""Linear layers that share their input, run as one matrix product where that pays."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def project_together(x: Tensor, *layers: nn.Linear) -> Tensor:
    """The outputs of bias-free layers behind each other, [..., sum of their sizes].

    In training on CUDA it is one product: the weights stay parameters of their own, and joining them is part of the
    pass that rounds them. One product reads x once, and its gradient needs no sum. While decoding the weights would be
    copied for every token, and a CPU gains nothing.
    """
    if x.is_cuda and torch.is_grad_enabled():
        return F.linear(x, torch.cat([layer.weight for layer in layers]))
    return torch.cat([layer(x) for layer in layers], dim=-1)


def project_each(x: Tensor, *layers: nn.Linear) -> tuple[Tensor, ...]:
    """The same outputs, apart."""
    if x.is_cuda and torch.is_grad_enabled():
        return torch.split(project_together(x, *layers), [layer.out_features for layer in layers], dim=-1)
    return tuple(layer(x) for layer in layers)
