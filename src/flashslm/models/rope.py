"""Rotary position embedding: half-split rotation with fp32 angles (Su et al. 2021, arXiv 2104.09864)."""

from typing import NamedTuple

import torch
from torch import Tensor

from flashslm.ops.rotary import rotate_heads


class Rotary(NamedTuple):
    """Cosines and sines of the angles, fp32 [..., 1, K/2]: they broadcast over heads."""

    cos: Tensor
    sin: Tensor


def rotary(positions: Tensor, head_dim: int, theta: float) -> Rotary:
    """Angles of integer positions of any shape: position / theta^(2i/head_dim)."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim
    angles = positions[..., None, None] * theta**-exponents
    return Rotary(angles.cos(), angles.sin())


def rotate(x: Tensor, angles: Rotary) -> Tensor:
    """Rotate [..., H, K], pairing component i with i + K/2."""
    return rotate_heads(x, angles.cos, angles.sin)
