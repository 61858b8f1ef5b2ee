"""Causal depthwise convolution followed by SiLU (the short convolution of DeltaNet and Mamba-2).

Shapes: x [B, T, D], weight [D, K] (the last tap meets the present token), bias [D], state [B, D, K-1]: the last K-1
inputs, oldest first. Outputs have x's dtype.
"""

from functools import reduce
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from flashslm.ops.documents import document_starts, positions_in_document
from flashslm.ops.precision import compute_dtype, without_autocast


class ConvInputs(NamedTuple):
    """What each backend takes."""

    x_BTD: Tensor
    weight_DK: Tensor
    bias_D: Tensor | None = None
    initial_state_BDK1: Tensor | None = None
    documents_BT: Tensor | None = None
    length: Tensor | None = None  # int64 [1]: inputs of every row before the state that is returned; None: all


@without_autocast
def causal_conv_naive(inputs: ConvInputs) -> tuple[Tensor, Tensor]:
    """Slide the window token by token: the specification. Returns y [B, T, D] and the last state [B, D, K-1]."""
    x_BTD, weight_DK, bias_D, initial_state_BDK1, documents_BT, real = inputs
    dtype = compute_dtype(x_BTD)
    initial = _initial_state(x_BTD, weight_DK, initial_state_BDK1).to(dtype)
    starts_BT = None if documents_BT is None else document_starts(documents_BT)
    state, outputs, last = initial, [], initial
    for t in range(x_BTD.shape[1]):
        if starts_BT is not None:
            state = torch.where(starts_BT[:, t, None, None], initial, state)
        window_BDK = torch.cat([state, x_BTD[:, t, :, None].to(dtype)], dim=-1)
        y_BD = (window_BDK * weight_DK.to(dtype)).sum(-1)
        outputs.append(F.silu(y_BD if bias_D is None else y_BD + bias_D.to(dtype)))
        state = window_BDK[..., 1:]
        last = state if real is None else torch.where(t < real, state, last)
    return torch.stack(outputs, dim=1).to(x_BTD.dtype), last.to(x_BTD.dtype)


@without_autocast
def causal_conv_shifted(inputs: ConvInputs) -> tuple[Tensor, Tensor]:
    """Add K shifted copies of the sequence. Returns what the naive form does."""
    x_BTD, weight_DK, bias_D, initial_state_BDK1, documents_BT, real = inputs
    dtype = compute_dtype(x_BTD)
    initial = _initial_state(x_BTD, weight_DK, initial_state_BDK1).to(x_BTD.dtype)
    padded = torch.cat([initial.mT, x_BTD], dim=1)
    weight_KD = weight_DK.to(dtype).T.contiguous()
    if documents_BT is None:
        state = last_inputs(x_BTD, initial, real)
        y: Tensor = _ShiftedSum.apply(padded.to(dtype), weight_KD)
    else:
        shifted, state = _shift_documents(padded, initial, documents_BT)
        y = reduce(torch.add, (x.to(dtype) * tap for x, tap in zip(shifted, weight_KD, strict=True)))
    if bias_D is not None:
        y = y + bias_D.to(dtype)
    return F.silu(y).to(x_BTD.dtype), state


class _ShiftedSum(torch.autograd.Function):
    """y_t = sum_j w_j x_{t+j} over x [B, T+K-1, D] and w [K, D].

    Written out because autograd makes a zero-filled copy of x for the gradient of each slice: forward and backward take
    a third of that time on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        taps, length = weight.shape[0], x.shape[1] - weight.shape[0] + 1
        y = x[:, :length] * weight[0]
        for j in range(1, taps):
            y.addcmul_(x[:, j : j + length], weight[j])
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        length = grad_y.shape[1]
        grad_x = torch.zeros_like(x)
        for j, tap in enumerate(weight):
            grad_x[:, j : j + length].addcmul_(grad_y, tap)
        products = [(grad_y * x[:, j : j + length]).sum((0, 1)) for j in range(weight.shape[0])]
        return grad_x, torch.stack(products)


def last_inputs(x_BTD: Tensor, initial_BDK1: Tensor, length: Tensor | None = None) -> Tensor:
    """The state [B, D, K-1] after one document from an initial state: after its first `length` [1] tokens, or all."""
    kept, tokens = initial_BDK1.shape[2], x_BTD.shape[1]
    if length is None:
        return torch.cat([initial_BDK1, x_BTD[:, max(0, tokens - kept) :].mT], dim=2)[..., -kept:]
    place = length - kept + torch.arange(kept, device=x_BTD.device)  # below 0: in the initial state
    recent = x_BTD.index_select(1, place.clamp(min=0)).mT
    return torch.where(place >= 0, recent, initial_BDK1.index_select(2, (place + kept).clamp(max=kept - 1)))


def causal_conv_step(x_BD: Tensor, weight_DK: Tensor, bias_D: Tensor | None, state_BDK1: Tensor) -> Tensor:
    """Advance one token; the state is updated in place. Returns y [B, D] in x's dtype."""
    dtype = compute_dtype(x_BD)
    window_BDK = torch.cat([state_BDK1, x_BD[..., None].to(state_BDK1.dtype)], dim=-1)
    y_BD = (window_BDK.to(dtype) * weight_DK.to(dtype)).sum(-1)
    state_BDK1.copy_(window_BDK[..., 1:])
    return F.silu(y_BD if bias_D is None else y_BD + bias_D.to(dtype)).to(x_BD.dtype)


def _initial_state(x_BTD: Tensor, weight_DK: Tensor, initial_state: Tensor | None) -> Tensor:
    if initial_state is not None:
        return initial_state
    return x_BTD.new_zeros(x_BTD.shape[0], x_BTD.shape[2], weight_DK.shape[1] - 1)


def _shift_documents(padded: Tensor, initial: Tensor, documents_BT: Tensor) -> tuple[list[Tensor], Tensor]:
    """The K shifted copies, with the initial state in place of tokens of earlier documents, and the last state."""
    length = documents_BT.shape[1]
    history = initial.shape[2]
    position = positions_in_document(documents_BT)
    # One place more than there are tokens: what the next token of the last document will see is the last state.
    position = torch.cat([position, position[:, -1:] + 1], dim=1)[..., None]
    initial_BKD = initial.mT
    shifted = []
    for j in range(history):
        source = (position + j).clamp(max=history - 1).expand(-1, -1, padded.shape[2])
        seen = padded[:, j : j + length + 1]
        shifted.append(torch.where(position < history - j, initial_BKD.gather(1, source), seen))
    state = torch.stack([s[:, -1] for s in shifted], dim=-1)
    return [s[:, :length] for s in shifted] + [padded[:, history:]], state
