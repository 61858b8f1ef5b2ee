"""Closeness of two ways to compute the same tensor."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

_ROUNDINGS = 64  # as many roundings of the largest number involved may add up


def exceeds(actual: Tensor, expected: Tensor, tolerance: float, computed_with: Iterable[Tensor]) -> float:
    """How many times the largest difference exceeds what is allowed: up to 1 is close, NaN never is.

    Allowed is `tolerance` relative to the largest expected element and, since a result that is zero in theory has no
    size of its own, the rounding of what it was computed with: inputs, outputs and their gradients.
    """
    largest = max(
        (float(t.detach().abs().max()) for t in computed_with if t.is_floating_point() and t.numel()), default=0
    )
    rounding = _ROUNDINGS * torch.finfo(expected.dtype).eps * largest
    allowed = tolerance * float(expected.abs().max()) + rounding
    difference = float((actual.to(expected.dtype) - expected).abs().max())
    if allowed == 0 and difference > 0:
        return math.inf
    return difference / allowed if difference else 0.0
