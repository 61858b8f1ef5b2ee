"""Causal grouped-query attention, scale 1/sqrt(K).

Shapes: q [B, T, H, K]; k, v [B, S, G, K] with S >= T and H a multiple of G: the first S - T keys are a prefix (meta
tokens, earlier chunks) that every query sees, the last T belong to the queries.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from flashslm.ops.precision import compute_dtype, without_autocast


@without_autocast
def attention_naive(q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, documents_BT: Tensor | None = None) -> Tensor:
    """Attend by explicit scores: the specification. Returns o [B, T, H, K]."""
    dtype = compute_dtype(q_BTHK)
    group = q_BTHK.shape[2] // k_BSGK.shape[2]
    k, v = (x.to(dtype).repeat_interleave(group, dim=2) for x in (k_BSGK, v_BSGK))
    scores_BHTS = torch.einsum("bthk,bshk->bhts", q_BTHK.to(dtype), k) / math.sqrt(q_BTHK.shape[3])
    visible = _visible(q_BTHK.shape[1], k.shape[1], documents_BT, q_BTHK.device)
    weights_BHTS = scores_BHTS.masked_fill(~visible, -torch.inf).softmax(dim=-1)
    return torch.einsum("bhts,bshk->bthk", weights_BHTS, v).to(q_BTHK.dtype)


def attention_sdpa(q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, documents_BT: Tensor | None = None) -> Tensor:
    """Attend by torch's fused kernels. Returns what the naive form does."""
    length, keys = q_BTHK.shape[1], k_BSGK.shape[1]
    q, k, v = (x.transpose(1, 2) for x in (q_BTHK, k_BSGK, v_BSGK))
    plain = documents_BT is None and length == keys
    mask = None if plain else _visible(length, keys, documents_BT, q.device)
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=plain, enable_gqa=grouped).transpose(1, 2)


def attention_step(
    q_BHK: Tensor, k_BGK: Tensor, v_BGK: Tensor, keys_BSGK: Tensor, values_BSGK: Tensor, lengths_B: Tensor
) -> Tensor:
    """Write one token's key and value at `lengths_B` of a static cache and attend up to it. Returns o [B, H, K].

    The cache must be finite beyond the length: masked places are multiplied by zero. No host synchronisation.
    """
    batch, slots, groups, size = keys_BSGK.shape
    rows_B = torch.arange(batch, device=lengths_B.device)
    keys_BSGK[rows_B, lengths_B] = k_BGK.to(keys_BSGK.dtype)
    values_BSGK[rows_B, lengths_B] = v_BGK.to(values_BSGK.dtype)
    visible = torch.arange(slots, device=lengths_B.device) <= lengths_B[:, None, None, None]
    # A group's query heads take the place of query tokens, so that the cache is not repeated per head.
    q = q_BHK.to(keys_BSGK.dtype).view(batch, groups, -1, size)
    o = F.scaled_dot_product_attention(q, keys_BSGK.transpose(1, 2), values_BSGK.transpose(1, 2), visible)
    return o.reshape(q_BHK.shape)


def _visible(length: int, keys: int, documents_BT: Tensor | None, device: torch.device) -> Tensor:
    """Which keys each query sees: bool [T, S], or [B, 1, T, S] with documents."""
    visible = torch.ones(length, keys, dtype=torch.bool, device=device).tril(keys - length)
    if documents_BT is None:
        return visible
    same = documents_BT[:, None, :, None] == documents_BT[:, None, None, :]
    return visible & F.pad(same, (keys - length, 0), value=True)
