"""Causal grouped-query attention, scale 1/sqrt(K), over all earlier tokens or a window of them.

Shapes: q [B, T, H, K]; k, v [B, S, G, K] with S >= T and H a multiple of G: the first S - T keys are a prefix (meta
tokens, earlier chunks) that comes before every document, the last T belong to the queries. With a window a query sees
its own key and the `window` - 1 before it, those of the prefix counted like any others.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from flashslm.ops.documents import positions_in_document
from flashslm.ops.precision import compute_dtype, without_autocast


class AttentionInputs(NamedTuple):
    """What each backend takes."""

    q_BTHK: Tensor
    k_BSGK: Tensor
    v_BSGK: Tensor
    documents_BT: Tensor | None = None
    window: int | None = None


@without_autocast
def attention_naive(inputs: AttentionInputs) -> Tensor:
    """Attend by explicit scores: the specification. Returns o [B, T, H, K]."""
    q_BTHK, k_BSGK, v_BSGK, documents_BT, window = inputs
    dtype = compute_dtype(q_BTHK)
    group = q_BTHK.shape[2] // k_BSGK.shape[2]
    k, v = (x.to(dtype).repeat_interleave(group, dim=2) for x in (k_BSGK, v_BSGK))
    scores_BHTS = torch.einsum("bthk,bshk->bhts", q_BTHK.to(dtype), k) / math.sqrt(q_BTHK.shape[3])
    visible = _visible(q_BTHK.shape[1], k.shape[1], documents_BT, window, q_BTHK.device)
    weights_BHTS = scores_BHTS.masked_fill(~visible, -torch.inf).softmax(dim=-1)
    return torch.einsum("bhts,bshk->bthk", weights_BHTS, v).to(q_BTHK.dtype)


def attention_sdpa(inputs: AttentionInputs) -> Tensor:
    """Attend by torch's fused kernels. Returns what the naive form does."""
    q_BTHK, k_BSGK, v_BSGK, documents_BT, window = inputs
    length, keys = q_BTHK.shape[1], k_BSGK.shape[1]
    q, k, v = (x.transpose(1, 2) for x in (q_BTHK, k_BSGK, v_BSGK))
    plain = documents_BT is None and length == keys and (window is None or keys <= window)
    mask = None if plain else _visible(length, keys, documents_BT, window, q.device)
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=plain, enable_gqa=grouped).transpose(1, 2)


def attention_step(
    q_BHK: Tensor,
    k_BGK: Tensor,
    v_BGK: Tensor,
    keys_BSGK: Tensor,
    values_BSGK: Tensor,
    lengths_B: Tensor,
    window: int | None = None,
) -> Tensor:
    """Write one token's key and value at `lengths_B` of a static cache and attend up to it. Returns o [B, H, K].

    With a window the cache is a ring, position p in slot p mod S, of S >= window slots (or one for every position).
    The cache must be finite where nothing was written: masked places are multiplied by zero. No host synchronisation.
    """
    batch, slots, groups, size = keys_BSGK.shape
    rows_B = torch.arange(batch, device=lengths_B.device)
    slots_B = lengths_B if window is None else lengths_B % slots
    keys_BSGK[rows_B, slots_B] = k_BGK.to(keys_BSGK.dtype)
    values_BSGK[rows_B, slots_B] = v_BGK.to(values_BSGK.dtype)
    length_B111, slot_S = lengths_B[:, None, None, None], torch.arange(slots, device=lengths_B.device)
    visible = slot_S <= length_B111
    if window is not None and window < slots:
        visible &= (length_B111 - slot_S) % slots < window
    # A group's query heads take the place of query tokens, so that the cache is not repeated per head.
    q = q_BHK.to(keys_BSGK.dtype).view(batch, groups, -1, size)
    o = F.scaled_dot_product_attention(q, keys_BSGK.transpose(1, 2), values_BSGK.transpose(1, 2), visible)
    return o.reshape(q_BHK.shape)


def _visible(length: int, keys: int, documents_BT: Tensor | None, window: int | None, device: torch.device) -> Tensor:
    """Which keys each query sees: bool [T, S], or [B, 1, T, S] with documents."""
    prefix = keys - length
    own = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    position = torch.arange(length, device=device)
    if window is not None:
        own = own.triu(1 - window)
    if documents_BT is not None:
        own = own & (documents_BT[:, :, None] == documents_BT[:, None, :])
        # A document follows the prefix wherever in the row it stands: its window counts from there.
        position = positions_in_document(documents_BT)
    shared = own.new_ones(*own.shape[:-1], prefix)
    if window is not None:
        shared = position[..., None] + prefix - torch.arange(prefix, device=device) < window
    visible = torch.cat([shared, own], dim=-1)
    return visible if documents_BT is None else visible[:, None]
