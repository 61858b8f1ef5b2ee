"""State-space duality, Mamba-2's mixing: S <- exp(dt a) S + dt x b^T, y = S c (Dao and Gu 2024, arXiv 2405.21060).

Shapes: x [B, T, H, P], dt [B, T, H] (after softplus), a [H] (negative), b, c [B, T, N] (one group), state
[B, H, P, N]. The skip D x is the caller's. Outputs have x's dtype, states at least fp32.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from flashslm.ops.documents import ChunkedDocuments, chunk_documents, state_before
from flashslm.ops.precision import at_least_fp32, compute_dtype, without_autocast

CHUNK_SIZE = 32  # on a CPU as fast as 64 or faster, at half the memory


class SSDInputs(NamedTuple):
    """What each backend takes."""

    x_BTHP: Tensor
    dt_BTH: Tensor
    a_H: Tensor
    b_BTN: Tensor
    c_BTN: Tensor
    initial_state_BHPN: Tensor | None = None
    documents_BT: Tensor | None = None


class SSDToken(NamedTuple):
    """One token of every sequence; the state is updated in place."""

    x_BHP: Tensor
    dt_BH: Tensor
    a_H: Tensor
    b_BN: Tensor
    c_BN: Tensor
    state_BHPN: Tensor


class RawScan(NamedTuple):
    """What Mamba-2 wraps around the scan: dt = softplus(dt + bias), and the skip D x; fp32 [H] each."""

    dt_bias_H: Tensor
    skip_H: Tensor

    def step_size(self, dt: Tensor) -> Tensor:
        return F.softplus(at_least_fp32(dt) + self.dt_bias_H)

    def add_skip(self, y: Tensor, x: Tensor) -> Tensor:
        """y + D x for [..., H, P], in at least fp32."""
        return y + self.skip_H[:, None] * x


@without_autocast
def ssd_naive(inputs: SSDInputs) -> tuple[Tensor, Tensor]:
    """Run the recurrence token by token: the specification. Returns y [B, T, H, P] and the last state."""
    x_BTHP, dt_BTH, a_H, b_BTN, c_BTN, initial_state_BHPN, documents_BT = inputs
    dtype = compute_dtype(x_BTHP)
    x, dt, a, b, c = (v.to(dtype) for v in (x_BTHP, dt_BTH, a_H, b_BTN, c_BTN))
    initial = _initial_state(x, b, initial_state_BHPN)
    state, outputs = initial, []
    for t in range(x.shape[1]):
        state = state_before(t, state, initial, documents_BT)
        decay_BH = torch.exp(dt[:, t] * a)
        state = decay_BH[..., None, None] * state + torch.einsum("bh,bhp,bn->bhpn", dt[:, t], x[:, t], b[:, t])
        outputs.append(torch.einsum("bhpn,bn->bhp", state, c[:, t]))
    return torch.stack(outputs, dim=1).to(x_BTHP.dtype), state


@without_autocast
def ssd_chunked(inputs: SSDInputs, chunk_size: int = CHUNK_SIZE) -> tuple[Tensor, Tensor]:
    """Run the recurrence chunk by chunk (Dao and Gu 2024, section 6). Returns what the naive form does.

    With L the cumulative sum of dt a in a chunk: inside it y_i = sum_{j<=i} (c_i·b_j) exp(L_i - L_j) dt_j x_j; from
    the state that enters, exp(L_i) S c_i.
    """
    x_BTHP, dt_BTH, a_H, b_BTN, c_BTN, initial_state_BHPN, documents_BT = inputs
    length, dtype = x_BTHP.shape[1], compute_dtype(x_BTHP)
    chunk_size = min(chunk_size, length)
    x, dt, b, c = (_chunk(v.to(dtype), chunk_size) for v in (x_BTHP, dt_BTH, b_BTN, c_BTN))
    log_decay = dt * a_H.to(dtype)
    documents = None if documents_BT is None else chunk_documents(documents_BT, chunk_size)
    total = log_decay.cumsum(dim=2) if documents is None else _cumsum_in_document(log_decay, documents.first)
    x = x * dt[..., None]

    written = _written_states(x, total, b, documents)
    start = _initial_state(x_BTHP, b_BTN, initial_state_BHPN)
    states, state = _scan(written, total[:, :, -1].exp(), start, documents)
    if documents is None:
        read = _read(states, c)
    else:
        carried = documents.carried[..., None]
        read = _read(states, c * carried) + _read(start[:, None], c * ~carried)
    output = _within_chunks(x, total, b, c, documents) + read.view_as(x) * total.exp()[..., None]
    return output.flatten(1, 2)[:, :length].to(x_BTHP.dtype), state


def ssd_step(token: SSDToken) -> Tensor:
    """Advance one token. Returns y [B, H, P] in x's dtype."""
    x_BHP, dt_BH, a_H, b_BN, c_BN, state_BHPN = token
    dtype = state_BHPN.dtype
    x, dt, b, c = (v.to(dtype) for v in (x_BHP, dt_BH, b_BN, c_BN))
    state_BHPN.mul_(torch.exp(dt * a_H)[..., None, None])
    state_BHPN.addcmul_((x * dt[..., None])[..., None], b[:, None, None, :])
    return torch.bmm(state_BHPN.flatten(1, 2), c[..., None]).view_as(x).to(x_BHP.dtype)


def _initial_state(x: Tensor, b: Tensor, initial_state: Tensor | None) -> Tensor:
    batch, _, heads, size = x.shape
    if initial_state is None:
        return torch.zeros(batch, heads, size, b.shape[-1], dtype=compute_dtype(x), device=x.device)
    return initial_state.to(compute_dtype(x))


def _chunk(x: Tensor, chunk_size: int) -> Tensor:
    """[B, T, ...] to [B, chunks, C, ...], zero-padded: dt = 0 neither decays nor writes."""
    padding = -x.shape[1] % chunk_size
    if padding:
        x = F.pad(x, (0, 0) * (x.dim() - 2) + (0, padding))
    return x.reshape(x.shape[0], -1, chunk_size, *x.shape[2:])


def _cumsum_in_document(log_decay: Tensor, first: Tensor) -> Tensor:
    """Cumulative sum along C that starts again at each document, whose first index in the chunk is `first`."""
    total = log_decay.cumsum(dim=2)
    before = (total - log_decay).gather(2, first[..., None].expand_as(total))
    return total - before


def _within_chunks(x: Tensor, total: Tensor, b: Tensor, c: Tensor, documents: ChunkedDocuments | None) -> Tensor:
    """What tokens read from earlier tokens of their own chunk, [B, chunks, C, H, P]."""
    size = total.shape[2]
    visible = torch.ones(size, size, dtype=torch.bool, device=x.device).tril()
    if documents is not None:
        visible = visible & documents.same
    overlap = (c @ b.mT * visible)[:, :, None]
    total = total.transpose(2, 3)
    # Where the difference is positive nothing is visible; the clamp keeps exp from overflowing there.
    decay = (total[..., :, None] + (-total)[..., None, :]).clamp(max=0).exp()
    return ((overlap * decay) @ x.transpose(2, 3)).transpose(2, 3)


def _written_states(x: Tensor, total: Tensor, b: Tensor, documents: ChunkedDocuments | None) -> Tensor:
    """What a chunk adds to the state it leaves behind, [B, chunks, H, P, N]."""
    log_decay = total[:, :, -1:] - total
    if documents is not None:
        log_decay = log_decay.masked_fill(~documents.last[..., None], -torch.inf)
    added = (x * log_decay.exp()[..., None]).flatten(3).mT @ b
    return added.view(*added.shape[:2], *x.shape[3:], b.shape[-1])


def _scan(written: Tensor, decay: Tensor, start: Tensor, documents: ChunkedDocuments | None) -> tuple[Tensor, Tensor]:
    """Pass the state through the chunks: the state that enters each chunk [B, chunks, H, P, N] and the last one."""
    state, states = start, []
    for i, (written_c, decay_c) in enumerate(zip(written.unbind(1), decay[..., None, None].unbind(1), strict=True)):
        states.append(state)
        if documents is not None:
            state = torch.where(documents.kept[:, i, None, None, None], state, start)
        state = torch.addcmul(written_c, state, decay_c)
    return torch.stack(states, dim=1), state


def _read(states: Tensor, c: Tensor) -> Tensor:
    """Read [B, chunks, H, P, N] with c [B, chunks, C, N]: [B, chunks, C, H·P]."""
    return c @ states.flatten(2, 3).mT
