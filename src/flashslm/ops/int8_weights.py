"""Weights of 8 bits: whole numbers from -127 to 127 with one scale per row, the largest of the row over 127."""

from typing import NamedTuple

import torch
from torch import Tensor

from flashslm.ops.precision import at_least_fp32

LEVELS = 127


class Int8Weight(NamedTuple):
    """A matrix [R, D] as `values` times `scales`."""

    values_RD: Tensor  # int8
    scales_R: Tensor  # fp32

    @property
    def shape(self) -> torch.Size:
        return self.values_RD.shape

    def dequantised(self) -> Tensor:
        """The matrix in fp32."""
        return self.values_RD * self.scales_R[:, None]


def quantise_rows(weight_RD: Tensor) -> Int8Weight:
    """The nearest whole numbers. Quantising what `dequantised` returns changes nothing."""
    weight = at_least_fp32(weight_RD.detach())
    scales_R = weight.abs().amax(dim=1) / LEVELS
    values_RD = (weight / torch.where(scales_R > 0, scales_R, 1.0)[:, None]).round_().to(torch.int8)
    return Int8Weight(values_RD, scales_R.float())
