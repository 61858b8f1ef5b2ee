"""The delta rule: S <- S + beta k (v - S^T k)^T, o = S^T q (DeltaNet; Yang et al. 2024, arXiv 2406.06484).

Shapes: q, k [B, T, H, K], v [B, T, H, V], beta [B, T, H], state [B, H, K, V]. The caller scales q and normalises q, k.
Outputs have v's dtype, states at least fp32.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from flashslm.ops.documents import chunk_documents, document_starts
from flashslm.ops.precision import compute_dtype, without_autocast

CHUNK_SIZE = 32  # with heads of 32 to 64, faster on a CPU than 16 and 64


@without_autocast
def delta_rule_naive(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    beta_BTH: Tensor,
    initial_state_BHKV: Tensor | None = None,
    documents_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence token by token: the specification. Returns o [B, T, H, V] and the last state."""
    dtype = compute_dtype(q_BTHK)
    q, k, v, beta = (x.to(dtype) for x in (q_BTHK, k_BTHK, v_BTHV, beta_BTH))
    initial = _initial_state(k, v, initial_state_BHKV)
    starts_BT = None if documents_BT is None else document_starts(documents_BT)
    state, outputs = initial, []
    for t in range(q.shape[1]):
        if starts_BT is not None:
            state = torch.where(starts_BT[:, t, None, None, None], initial, state)
        error_BHV = v[:, t] - torch.einsum("bhkv,bhk->bhv", state, k[:, t])
        state = state + torch.einsum("bh,bhk,bhv->bhkv", beta[:, t], k[:, t], error_BHV)
        outputs.append(torch.einsum("bhkv,bhk->bhv", state, q[:, t]))
    return torch.stack(outputs, dim=1).to(v_BTHV.dtype), state


@without_autocast
def delta_rule_chunked(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    beta_BTH: Tensor,
    initial_state_BHKV: Tensor | None = None,
    documents_BT: Tensor | None = None,
    chunk_size: int = CHUNK_SIZE,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence chunk by chunk (WY form, Yang et al. 2024, section 3.2). Returns what the naive form does.

    With S the state that enters a chunk and A = tril(diag(beta) K K^T, -1), the values written in the chunk are
    U = (I + A)^-1 diag(beta) (V - K S); then o = Q S + tril(Q K^T) U and S <- S + K^T U.
    """
    length, dtype = q_BTHK.shape[1], compute_dtype(q_BTHK)
    chunk_size = min(chunk_size, length)
    q, k, v = (_chunk(x.to(dtype), chunk_size) for x in (q_BTHK, k_BTHK, v_BTHV))
    beta = _chunk(beta_BTH.to(dtype)[..., None], chunk_size)
    initial = None if initial_state_BHKV is None else initial_state_BHKV.to(dtype)
    documents = None if documents_BT is None else _chunk_documents(documents_BT, chunk_size)

    k_beta = k * beta
    overlap = k_beta @ k.mT
    scores = (q @ k.mT).tril()
    if documents is not None:
        overlap = overlap * documents.same
        scores = scores * documents.same
    # The unit diagonal and the upper triangle of `overlap` are not read.
    right = torch.cat([v * beta, k_beta], dim=-1)
    solved = torch.linalg.solve_triangular(overlap, right, upper=False, unitriangular=True)
    values, keys = solved.split([v.shape[-1], k.shape[-1]], dim=-1)
    if documents is None:
        written, states, state = _scan(values, keys, k, initial)
        output = q @ states
    else:
        start = _initial_state(k_BTHK, v_BTHV, initial_state_BHKV)
        written, states, state = _scan_documents(values, keys, k, start, documents)
        carried = documents.carried
        output = (q * carried) @ states + (q * ~carried) @ start
    output = output + scores @ written
    return _unchunk(output, length).to(v_BTHV.dtype), state


def delta_rule_step(q_BHK: Tensor, k_BHK: Tensor, v_BHV: Tensor, beta_BH: Tensor, state_BHKV: Tensor) -> Tensor:
    """Advance one token; the state is updated in place. Returns o [B, H, V] in v's dtype."""
    dtype = state_BHKV.dtype
    batch, heads, key_size, value_size = state_BHKV.shape
    state = state_BHKV.view(batch * heads, key_size, value_size)
    q, k = (x.to(dtype).reshape(batch * heads, 1, key_size) for x in (q_BHK, k_BHK))
    v = v_BHV.to(dtype).reshape(batch * heads, 1, value_size)
    beta = beta_BH.to(dtype).reshape(batch * heads, 1, 1)
    state.baddbmm_(k.mT, torch.baddbmm(v, k, state, alpha=-1).mul_(beta))
    return torch.bmm(q, state).view(batch, heads, value_size).to(v_BHV.dtype)


class _Masks(NamedTuple):
    """Document masks that broadcast over [chunks, B, H, C, K] (`same`: [chunks, B, H, C, C]; `kept`: states)."""

    same: Tensor
    carried: Tensor
    last: Tensor
    kept: Tensor


def _chunk_documents(documents_BT: Tensor, chunk_size: int) -> _Masks:
    documents = chunk_documents(documents_BT, chunk_size)
    carried, last = (mask.transpose(0, 1)[:, :, None, :, None] for mask in (documents.carried, documents.last))
    same, kept = documents.same.transpose(0, 1)[:, :, None], documents.kept.T[..., None, None, None]
    return _Masks(same, carried, last, kept)


def _initial_state(k_BTHK: Tensor, v_BTHV: Tensor, initial_state: Tensor | None) -> Tensor:
    batch, _, heads, key_size = k_BTHK.shape
    if initial_state is None:
        shape = (batch, heads, key_size, v_BTHV.shape[-1])
        return torch.zeros(shape, dtype=compute_dtype(k_BTHK), device=k_BTHK.device)
    return initial_state.to(compute_dtype(k_BTHK))


def _chunk(x_BTHK: Tensor, chunk_size: int) -> Tensor:
    """[B, T, H, K] to [chunks, B, H, C, K], zero-padded: a zero key with beta 0 writes nothing."""
    batch, length, heads, size = x_BTHK.shape
    padding = -length % chunk_size
    if padding:
        x_BTHK = F.pad(x_BTHK, (0, 0, 0, 0, 0, padding))
    # Chunks first: the scan then reads contiguous slices, and the gradient of unbind is one stack.
    return x_BTHK.reshape(batch, -1, chunk_size, heads, size).permute(1, 0, 3, 2, 4).contiguous()


def _unchunk(x: Tensor, length: int) -> Tensor:
    chunks, batch, heads, chunk_size, size = x.shape
    return x.permute(1, 0, 3, 2, 4).reshape(batch, chunks * chunk_size, heads, size)[:, :length]


def _scan(values: Tensor, keys: Tensor, k: Tensor, initial: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Pass the state through the chunks: values written, the state that enters each chunk, the last state."""
    state = k.new_zeros(*k.shape[1:3], k.shape[-1], values.shape[-1]) if initial is None else initial
    written, states = [], []
    for values_c, keys_c, k_c in zip(values.unbind(), keys.unbind(), k.unbind(), strict=True):
        states.append(state)
        written.append(values_c - keys_c @ state)
        state = state + k_c.mT @ written[-1]
    return torch.stack(written), torch.stack(states), state


def _scan_documents(
    values: Tensor, keys: Tensor, k: Tensor, start: Tensor, documents: _Masks
) -> tuple[Tensor, Tensor, Tensor]:
    """The scan in which a document that begins inside a chunk reads from, and ends up on, the initial state."""
    values = values - (keys * ~documents.carried) @ start
    keys = keys * documents.carried
    k_last = k * documents.last
    state, written, states = start, [], []
    chunks = zip(values.unbind(), keys.unbind(), k_last.unbind(), documents.kept.unbind(), strict=True)
    for values_c, keys_c, k_c, kept_c in chunks:
        states.append(state)
        written.append(values_c - keys_c @ state)
        state = torch.where(kept_c, state, start) + k_c.mT @ written[-1]
    return torch.stack(written), torch.stack(states), state
