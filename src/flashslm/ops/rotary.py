"""From the joined projections of attention to its heads: q and k normalised and rotated, v as it is.

Shapes: qkv [B, T, (H + 2G)·K] holds H heads of q, then G of k and G of v; cosines and sines fp32 [T, 1, K/2], or
[B, T, 1, K/2] for packed documents. The rotation pairs component i with i + K/2 (Su et al. 2021, arXiv 2104.09864);
before it each head of q and k is divided by its root mean square and multiplied by a weight [K], if one is given.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from flashslm.ops.precision import compute_dtype


class HeadNorm(NamedTuple):
    """Weights [K] of q's and of k's RMSNorm, and what each adds to the mean square."""

    q_weight_K: Tensor
    k_weight_K: Tensor
    q_eps: float
    k_eps: float


class HeadsInputs(NamedTuple):
    """What each backend takes; `heads` are H and G."""

    qkv_BTC: Tensor
    cos: Tensor
    sin: Tensor
    heads: tuple[int, int]
    norm: HeadNorm | None = None


def attention_heads_naive(inputs: HeadsInputs) -> tuple[Tensor, Tensor, Tensor]:
    """The specification. Returns q [B, T, H, K], k and v [B, T, G, K] in qkv's dtype."""
    qkv_BTC, cos, sin, heads, norm = inputs
    q_heads, kv_heads = heads
    all_heads = qkv_BTC.unflatten(-1, (q_heads + 2 * kv_heads, -1))
    q, k, v = all_heads.split([q_heads, kv_heads, kv_heads], dim=-2)
    if norm is not None:
        q, k = _norm(q, norm.q_weight_K, norm.q_eps), _norm(k, norm.k_weight_K, norm.k_eps)
    return rotate_heads(q, cos, sin), rotate_heads(k, cos, sin), v


def rotate_heads(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate [..., H, K], in x's dtype."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    dtype = compute_dtype(x)
    return F.rms_norm(x.to(dtype), weight.shape, weight.to(dtype), eps).to(x.dtype)
