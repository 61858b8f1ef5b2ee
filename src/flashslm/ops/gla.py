"""Gated linear attention: S <- diag(exp(g)) S + k v^T, o = S^T q (Yang et al. 2023, arXiv 2312.06635).

Shapes: q, k and g [B, T, H, K] (g <= 0), v [B, T, H, V], state [B, H, K, V]. The caller scales q. Outputs have v's
dtype, states at least fp32.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from flashslm.ops.chunks import (
    ChunkDecays,
    ChunkMasks,
    chunk,
    chunk_decays,
    chunk_masks,
    initial_state,
    read_states,
    unchunk,
)
from flashslm.ops.documents import state_before
from flashslm.ops.precision import compute_dtype, without_autocast

CHUNK_SIZE = 32  # with heads of 16 by 32, as fast on a CPU as 16 and 64


class GLAInputs(NamedTuple):
    """What each backend takes."""

    q_BTHK: Tensor
    k_BTHK: Tensor
    v_BTHV: Tensor
    log_decay_BTHK: Tensor
    initial_state_BHKV: Tensor | None = None
    documents_BT: Tensor | None = None


@without_autocast
def gla_naive(inputs: GLAInputs) -> tuple[Tensor, Tensor]:
    """Run the recurrence token by token: the specification. Returns o [B, T, H, V] and the last state."""
    q_BTHK, k_BTHK, v_BTHV, log_decay_BTHK, initial_state_BHKV, documents_BT = inputs
    dtype = compute_dtype(q_BTHK)
    q, k, v, log_decay = (x.to(dtype) for x in (q_BTHK, k_BTHK, v_BTHV, log_decay_BTHK))
    initial = initial_state(k, v, initial_state_BHKV)
    state, outputs = initial, []
    for t in range(q.shape[1]):
        state = state_before(t, state, initial, documents_BT)
        state = log_decay[:, t, :, :, None].exp() * state + torch.einsum("bhk,bhv->bhkv", k[:, t], v[:, t])
        outputs.append(torch.einsum("bhkv,bhk->bhv", state, q[:, t]))
    return torch.stack(outputs, dim=1).to(v_BTHV.dtype), state


@without_autocast
def gla_chunked(inputs: GLAInputs, chunk_size: int = CHUNK_SIZE) -> tuple[Tensor, Tensor]:
    """Run the recurrence chunk by chunk (Yang et al. 2023, section 4). Returns what the naive form does.

    `chunk_size` is a power of two. With L the cumulative sum of g in a chunk: from the state that enters, token i reads
    (q_i * exp(L_i)) S; from tokens j <= i of its chunk, sum_j (sum_k q_ik k_jk exp(L_ik - L_jk)) v_j.
    """
    q_BTHK, k_BTHK, v_BTHV, log_decay_BTHK, initial_state_BHKV, documents_BT = inputs
    length, dtype = q_BTHK.shape[1], compute_dtype(q_BTHK)
    chunk_size = min(chunk_size, 1 << (length - 1).bit_length())
    q, k, v, log_decay = (chunk(x.to(dtype), chunk_size) for x in (q_BTHK, k_BTHK, v_BTHV, log_decay_BTHK))
    start = initial_state(k_BTHK, v_BTHV, initial_state_BHKV)
    masks = None if documents_BT is None else chunk_masks(documents_BT, chunk_size)
    decays = chunk_decays(log_decay, masks)

    states, state = _scan(k, v, decays, start, masks)
    output = read_states(q * decays.read, states, start, masks) + _within_chunks(q, k, decays.total, masks) @ v
    return unchunk(output, length).to(v_BTHV.dtype), state


def gla_step(q_BHK: Tensor, k_BHK: Tensor, v_BHV: Tensor, log_decay_BHK: Tensor, state_BHKV: Tensor) -> Tensor:
    """Advance one token; the state is updated in place. Returns o [B, H, V] in v's dtype."""
    dtype = state_BHKV.dtype
    q, k, v, log_decay = (x.to(dtype) for x in (q_BHK, k_BHK, v_BHV, log_decay_BHK))
    state_BHKV.mul_(log_decay.exp()[..., None]).addcmul_(k[..., None], v[..., None, :])
    return (q[..., None, :] @ state_BHKV)[..., 0, :].to(v_BHV.dtype)


def _within_chunks(q: Tensor, k: Tensor, total: Tensor, masks: ChunkMasks | None) -> Tensor:
    """How much of each earlier token of its chunk a token reads, [chunks, B, H, C, C].

    Built from single tokens, which read themselves undecayed, by joining neighbours: what the later half reads of the
    earlier one splits at its last token m into the factors exp(L_i - L_m) and exp(L_m - L_j), which cannot overflow, so
    that it is a matrix product (section 4.3's secondary chunks, at every scale).
    """
    size, half = q.shape[-2], 1
    scores = (q * k).sum(-1)[..., None, None]
    while half < size:
        halves = (size // (2 * half), 2, half)
        q_late, k_early = q.unflatten(-2, halves)[..., 1, :, :], k.unflatten(-2, halves)[..., 0, :, :]
        total_early, total_late = total.unflatten(-2, halves).unbind(-3)
        middle = total_early[..., -1:, :]
        across = (q_late * (total_late - middle).exp()) @ (k_early * (middle - total_early).exp()).mT
        early, late = scores.unflatten(-3, halves[:2]).unbind(-3)
        scores = torch.cat([F.pad(early, (0, half)), torch.cat([across, late], dim=-1)], dim=-2)
        half *= 2
    scores = scores[..., 0, :, :]
    return scores if masks is None else scores * masks.same


def _scan(k: Tensor, v: Tensor, decays: ChunkDecays, start: Tensor, masks: ChunkMasks | None) -> tuple[Tensor, Tensor]:
    """Pass the state through the chunks: the state that enters each chunk and the last one."""
    k = k * decays.write
    if masks is not None:
        k = k * masks.last
    state, states = start, []
    for i, (added, decay_c) in enumerate(zip((k.mT @ v).unbind(), decays.state.unbind(), strict=True)):
        states.append(state)
        left = state if masks is None else torch.where(masks.kept[i], state, start)
        state = torch.addcmul(added, left, decay_c)
    return torch.stack(states), state
