"""The delta rule: S <- S + beta k (v - S^T k)^T, o = S^T q (DeltaNet; Yang et al. 2024, arXiv 2406.06484).

With a decay, the gated delta rule: S <- exp(g) S before each such update (Yang et al. 2024, arXiv 2412.06464).
Shapes: q, k [B, T, H, K], v [B, T, H, V], beta and g [B, T, H] (g <= 0), state [B, H, K, V]. The caller scales q and
normalises q, k. Outputs have v's dtype, states at least fp32.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from flashslm.ops.chunks import ChunkMasks, chunk, chunk_decays, chunk_masks, initial_state, read_states, unchunk
from flashslm.ops.documents import state_before
from flashslm.ops.precision import at_least_fp32, compute_dtype, without_autocast

L2_EPS = 1e-6  # added to the sum of squares
CHUNK_SIZE = 32  # with heads of 32 to 64, faster on a CPU than 16 and 64


class DeltaRuleInputs(NamedTuple):
    """What each backend takes; without a decay it is the plain rule."""

    q_BTHK: Tensor
    k_BTHK: Tensor
    v_BTHV: Tensor
    beta_BTH: Tensor
    initial_state_BHKV: Tensor | None = None
    documents_BT: Tensor | None = None
    log_decay_BTH: Tensor | None = None


class DeltaRuleToken(NamedTuple):
    """One token of every sequence; the state is updated in place."""

    q_BHK: Tensor
    k_BHK: Tensor
    v_BHV: Tensor
    beta_BH: Tensor
    state_BHKV: Tensor
    log_decay_BH: Tensor | None = None


def normalise_heads(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """q and k [..., K] of unit length, in at least fp32, q with the scale 1/sqrt(K)."""
    return _unit(q) * q.shape[-1] ** -0.5, _unit(k)


def _unit(x: Tensor) -> Tensor:
    x = at_least_fp32(x)
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + L2_EPS)


@without_autocast
def delta_rule_naive(inputs: DeltaRuleInputs) -> tuple[Tensor, Tensor]:
    """Run the recurrence token by token: the specification. Returns o [B, T, H, V] and the last state."""
    q_BTHK, k_BTHK, v_BTHV, beta_BTH, initial_state_BHKV, documents_BT, log_decay_BTH = inputs
    dtype = compute_dtype(q_BTHK)
    q, k, v, beta = (x.to(dtype) for x in (q_BTHK, k_BTHK, v_BTHV, beta_BTH))
    initial = initial_state(k, v, initial_state_BHKV)
    state, outputs = initial, []
    for t in range(q.shape[1]):
        state = state_before(t, state, initial, documents_BT)
        if log_decay_BTH is not None:
            state = log_decay_BTH[:, t, :, None, None].to(dtype).exp() * state
        error_BHV = v[:, t] - torch.einsum("bhkv,bhk->bhv", state, k[:, t])
        state = state + torch.einsum("bh,bhk,bhv->bhkv", beta[:, t], k[:, t], error_BHV)
        outputs.append(torch.einsum("bhkv,bhk->bhv", state, q[:, t]))
    return torch.stack(outputs, dim=1).to(v_BTHV.dtype), state


@without_autocast
def delta_rule_chunked(inputs: DeltaRuleInputs, chunk_size: int = CHUNK_SIZE) -> tuple[Tensor, Tensor]:
    """Run the recurrence chunk by chunk (WY form, Yang et al. 2024, section 3.2). Returns what the naive form does.

    With S the state that enters a chunk and A = tril(diag(beta) K K^T, -1), the values written in the chunk are
    U = (I + A)^-1 diag(beta) (V - K S); then o = Q S + tril(Q K^T) U and S <- S + K^T U. With a decay, whose logarithm
    sums up to L in the chunk, entry ij of both triangles is multiplied by exp(L_i - L_j), rows of K and Q that meet S
    by exp(L_i), rows of K that write to the next S by exp(L_C - L_i), and S by exp(L_C).
    """
    q_BTHK, k_BTHK, v_BTHV, beta_BTH, initial_state_BHKV, documents_BT, log_decay_BTH = inputs
    length, dtype = q_BTHK.shape[1], compute_dtype(q_BTHK)
    chunk_size = min(chunk_size, length)
    q, k, v = (chunk(x.to(dtype), chunk_size) for x in (q_BTHK, k_BTHK, v_BTHV))
    beta = chunk(beta_BTH.to(dtype)[..., None], chunk_size)
    start = initial_state(k_BTHK, v_BTHV, initial_state_BHKV)
    masks = None if documents_BT is None else chunk_masks(documents_BT, chunk_size)

    k_beta = k * beta
    overlap = k_beta @ k.mT
    scores = (q @ k.mT).tril()
    if masks is not None:
        overlap, scores = overlap * masks.same, scores * masks.same
    decay = None
    if log_decay_BTH is not None:
        decays = chunk_decays(chunk(log_decay_BTH.to(dtype)[..., None], chunk_size), masks)
        # Above the diagonal nothing is read; the clamp keeps exp from overflowing there.
        between = (decays.total - decays.total.mT).clamp(max=0).exp()
        overlap, scores = overlap * between, scores * between
        q, k, k_beta, decay = q * decays.read, k * decays.write, k_beta * decays.read, decays.state
    # The unit diagonal and the upper triangle of `overlap` are not read.
    right = torch.cat([v * beta, k_beta], dim=-1)
    solved = torch.linalg.solve_triangular(overlap, right, upper=False, unitriangular=True)
    values, keys = solved.split([v.shape[-1], k.shape[-1]], dim=-1)
    if masks is None:
        written, states, state = _scan(values, keys, k, start, decay)
    else:
        written, states, state = _scan_documents(values, keys, k, start, decay, masks)
    output = read_states(q, states, start, masks) + scores @ written
    return unchunk(output, length).to(v_BTHV.dtype), state


def delta_rule_step(token: DeltaRuleToken) -> Tensor:
    """Advance one token. Returns o [B, H, V] in v's dtype."""
    q_BHK, k_BHK, v_BHV, beta_BH, state_BHKV, log_decay_BH = token
    dtype = state_BHKV.dtype
    batch, heads, key_size, value_size = state_BHKV.shape
    if log_decay_BH is not None:
        state_BHKV.mul_(log_decay_BH.to(dtype).exp()[..., None, None])
    state = state_BHKV.view(batch * heads, key_size, value_size)
    q, k = (x.to(dtype).reshape(batch * heads, 1, key_size) for x in (q_BHK, k_BHK))
    v = v_BHV.to(dtype).reshape(batch * heads, 1, value_size)
    beta = beta_BH.to(dtype).reshape(batch * heads, 1, 1)
    state.baddbmm_(k.mT, torch.baddbmm(v, k, state, alpha=-1).mul_(beta))
    return torch.bmm(q, state).view(batch, heads, value_size).to(v_BHV.dtype)


def _scan(
    values: Tensor, keys: Tensor, k: Tensor, state: Tensor, decay: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Pass the state through the chunks: values written, the state that enters each chunk, the last state."""
    written, states = [], []
    chunks = zip(values.unbind(), keys.unbind(), k.unbind(), _unbind(decay, len(k)), strict=True)
    for values_c, keys_c, k_c, decay_c in chunks:
        states.append(state)
        written.append(values_c - keys_c @ state)
        left = state if decay_c is None else state * decay_c
        state = left + k_c.mT @ written[-1]
    return torch.stack(written), torch.stack(states), state


def _scan_documents(
    values: Tensor, keys: Tensor, k: Tensor, start: Tensor, decay: Tensor | None, masks: ChunkMasks
) -> tuple[Tensor, Tensor, Tensor]:
    """The scan in which a document that begins inside a chunk reads from, and ends up on, the initial state."""
    values = values - (keys * ~masks.carried) @ start
    keys = keys * masks.carried
    k_last = k * masks.last
    state, written, states = start, [], []
    chunks = zip(
        values.unbind(), keys.unbind(), k_last.unbind(), masks.kept.unbind(), _unbind(decay, len(k)), strict=True
    )
    for values_c, keys_c, k_c, kept_c, decay_c in chunks:
        states.append(state)
        written.append(values_c - keys_c @ state)
        left = torch.where(kept_c, state, start)
        left = left if decay_c is None else left * decay_c
        state = left + k_c.mT @ written[-1]
    return torch.stack(written), torch.stack(states), state


def _unbind(decay: Tensor | None, chunks: int) -> Iterator[Tensor | None]:
    return iter([None] * chunks if decay is None else decay.unbind())
