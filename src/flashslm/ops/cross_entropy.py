"""Linear cross entropy: the loss of a linear head without the whole matrix of logits.

Shapes: hidden [N, D], weight [V, D], targets int64 [N]. The mean is over targets other than `ignore_index` (zero if
there is none).
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from flashslm.ops.kernels import backend_of
from flashslm.ops.precision import compute_dtype, without_autocast

# Logits held at a time. On a CPU 4 MiB of fp32 stay in the cache; on a GPU the chunk must fill the device.
CHUNK_LOGITS = {"cpu": 1 << 20, "cuda": 1 << 29}


@without_autocast
def linear_cross_entropy_naive(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, ignore_index: int = -100
) -> Tensor:
    """Form all logits: the specification. Returns the mean loss in nats."""
    logits_NV = hidden_ND.to(compute_dtype(hidden_ND)) @ weight_VD.to(compute_dtype(weight_VD)).T
    total = F.cross_entropy(logits_NV, targets_N, ignore_index=ignore_index, reduction="sum")
    return total / (targets_N != ignore_index).sum().clamp(min=1)


def linear_cross_entropy(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, ignore_index: int = -100) -> Tensor:
    """Go through the tokens in chunks, gradients included. Returns what the naive form does.

    Matrix products run in hidden's dtype, or in autocast's; the softmax and the weight's gradient are at least fp32.
    """
    device_type = hidden_ND.device.type
    if torch.is_autocast_enabled(device_type):
        hidden_ND = hidden_ND.to(torch.get_autocast_dtype(device_type))
    loss: Tensor = _apply(hidden_ND, weight_VD, targets_N, ignore_index)
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    """The gradients are computed in the forward pass, while a chunk's logits are there."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, ignore_index: int) -> Tensor:
        matrix = weight.to(hidden.dtype)
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight, dtype=compute_dtype(weight)) if ctx.needs_input_grad[1] else None
        loss = torch.zeros((), dtype=compute_dtype(hidden), device=hidden.device)
        scale = (targets != ignore_index).sum().clamp(min=1).to(loss.dtype).reciprocal()
        chunk_loss = _chunk_loss_backend(hidden)
        rows = max(1, CHUNK_LOGITS[hidden.device.type] // weight.shape[0])
        for start in range(0, hidden.shape[0], rows):
            h = hidden[start : start + rows]
            t = targets[start : start + rows]
            weights = torch.where(t == ignore_index, 0, scale)
            chunk_total, grad_logits = chunk_loss(h @ matrix.T, t.clamp(min=0), weights)
            loss += chunk_total
            if grad_hidden is not None:
                torch.mm(grad_logits, matrix, out=grad_hidden[start : start + rows])
            if grad_weight is not None:
                _add_product(grad_weight, grad_logits.T, h)
        ctx.save_for_backward(grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight = (None if g is None else _scaled(g, grad_loss) for g in ctx.saved_tensors)
        return hidden, weight, None, None


def _scaled(gradient: Tensor, factor: Tensor) -> Tensor:
    """In place on CUDA, where the head's gradient is large; autograd then refuses a second backward pass."""
    factor = factor.to(gradient.dtype)
    return gradient.mul_(factor) if gradient.is_cuda else gradient * factor


@without_autocast
def _apply(hidden: Tensor, weight: Tensor, targets: Tensor, ignore_index: int) -> Tensor:
    if not torch.is_grad_enabled():
        # `needs_input_grad` looks at the tensors alone.
        hidden, weight = hidden.detach(), weight.detach()
    loss: Tensor = _LinearCrossEntropy.apply(hidden, weight, targets, ignore_index)
    return loss


def _chunk_loss_backend(hidden: Tensor) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    if backend_of("cross_entropy", hidden) == "triton":
        from flashslm.ops.fused.cross_entropy import chunk_loss_triton

        return chunk_loss_triton
    return _chunk_loss


def _chunk_loss(logits: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted sum of the losses of a chunk and the gradient of its logits (in their dtype); one exp per logit."""
    scores = logits.to(compute_dtype(logits))
    maximum = scores.amax(dim=1, keepdim=True)
    target_score = scores.gather(1, targets[:, None])
    exponentials = scores.sub_(maximum).exp_()
    total = exponentials.sum(dim=1, keepdim=True)
    loss = ((total.log() + maximum - target_score)[:, 0] * weights).sum()
    gradient = exponentials.mul_(weights[:, None] / total)
    gradient.scatter_add_(1, targets[:, None], -weights[:, None])
    return loss, gradient.to(logits.dtype)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, the sum over chunks in total's dtype."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    elif total.is_cuda and total.dtype == torch.float32:
        torch.addmm(total, left, right, total.dtype, out=total)  # added up where the product is made, in fp32
    else:
        total += left @ right
