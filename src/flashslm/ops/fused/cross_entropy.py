"""The softmax of linear cross entropy in one kernel: a row's loss and the gradient of its logits, in place."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096
LOWEST = tl.constexpr(-1e30)  # of a lane that has seen nothing; the difference of two infinities is not a number


@triton.jit
def _loss_and_gradient(logits_ptr, target_ptr, weight_ptr, loss_ptr, row_stride, size, BLOCK: tl.constexpr):
    """One row: an online softmax in a first pass, its gradient over the logits in a second.

    Each lane keeps a maximum and a sum of its own until the pass ends: a reduction at each step would hold it up.
    """
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * row_stride
    target, weight = tl.load(target_ptr + row), tl.load(weight_ptr + row)
    maxima, totals = tl.full((BLOCK,), LOWEST, tl.float32), tl.zeros((BLOCK,), tl.float32)
    for start in range(0, size, BLOCK):
        at = start + tl.arange(0, BLOCK)
        scores = tl.load(logits_ptr + at, mask=at < size, other=-float("inf")).to(tl.float32)
        larger = tl.maximum(maxima, scores)
        totals = totals * tl.exp(maxima - larger) + tl.exp(scores - larger)
        maxima = larger
    maximum = tl.max(maxima, 0)
    total = tl.sum(totals * tl.exp(maxima - maximum), 0)
    score = tl.load(logits_ptr + target).to(tl.float32)
    tl.store(loss_ptr + row, (tl.log(total) + maximum - score) * weight)
    for start in range(0, size, BLOCK):
        at = start + tl.arange(0, BLOCK)
        scores = tl.load(logits_ptr + at, mask=at < size, other=-float("inf")).to(tl.float32)
        gradient = tl.exp(scores - maximum) / total - tl.where(at == target, 1.0, 0.0)
        tl.store(logits_ptr + at, gradient * weight, mask=at < size)


def chunk_loss_triton(logits_NV: Tensor, targets_N: Tensor, weights_N: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted sum of the losses of a chunk, fp32, and the gradient of its logits, which it overwrites."""
    losses_N = torch.empty(logits_NV.shape[0], dtype=torch.float32, device=logits_NV.device)
    grid = (logits_NV.shape[0],)
    _loss_and_gradient[grid](
        logits_NV, targets_N, weights_N, losses_N, logits_NV.stride(0), logits_NV.shape[1], BLOCK, num_warps=16
    )
    return losses_N.sum(), logits_NV
