"""Attention's heads from the joined projections in one pass, by Triton; shapes and semantics of `ops.rotary`.

The gradient of all projections is written into one tensor, as the matrix product that follows wants it.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from flashslm.ops.rotary import HeadsInputs

TOKENS = 16  # of a program in the backward pass, which adds up the norms' gradients over them


@triton.jit
def _tile(pointer, head, inside, count, size, HALF: tl.constexpr):
    """Both halves of `count` heads, zero beyond them."""
    mask = (head[:, None] >= 0) & (head[:, None] < count) & (inside[None, :] < HALF)
    at = pointer + head[:, None] * size + inside[None, :]
    return tl.load(at, mask=mask, other=0.0).to(tl.float32), tl.load(at + HALF, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _put(pointer, head, inside, count, size, first, second, HALF: tl.constexpr):
    mask = (head[:, None] >= 0) & (head[:, None] < count) & (inside[None, :] < HALF)
    at = pointer + head[:, None] * size + inside[None, :]
    tl.store(at, first.to(pointer.dtype.element_ty), mask=mask)
    tl.store(at + HALF, second.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def _weights(q_weight_ptr, k_weight_ptr, is_q, inside, HALF: tl.constexpr):
    """Both halves of the weight of each head's norm."""
    mask = inside < HALF
    q1, q2 = (
        tl.load(q_weight_ptr + inside, mask=mask, other=0.0).to(tl.float32),
        tl.load(q_weight_ptr + HALF + inside, mask=mask, other=0.0).to(tl.float32),
    )
    k1, k2 = (
        tl.load(k_weight_ptr + inside, mask=mask, other=0.0).to(tl.float32),
        tl.load(k_weight_ptr + HALF + inside, mask=mask, other=0.0).to(tl.float32),
    )
    return tl.where(is_q, q1[None, :], k1[None, :]), tl.where(is_q, q2[None, :], k2[None, :])


@triton.jit
def _forward(
    x_ptr, q_ptr, k_ptr, v_ptr, cos_ptr, sin_ptr, q_weight_ptr, k_weight_ptr, x_token, period, q_eps, k_eps,
    Q: tl.constexpr, G: tl.constexpr, HALF: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr,
    HAS_NORM: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head, inside = tl.arange(0, HEADS), tl.arange(0, WIDTH)
    size = 2 * HALF
    first, second = _tile(x_ptr + token * x_token, head, inside, Q + 2 * G, size, HALF)
    rotated, is_q = head[:, None] < Q + G, head[:, None] < Q
    y1, y2 = first, second
    if HAS_NORM:
        scale = 1.0 / tl.sqrt(
            (tl.sum(first * first, 1) + tl.sum(second * second, 1)) / size + tl.where(head < Q, q_eps, k_eps)
        )
        w1, w2 = _weights(q_weight_ptr, k_weight_ptr, is_q, inside, HALF)
        y1, y2 = first * scale[:, None] * w1, second * scale[:, None] * w2
    place = (token % period) * HALF + inside
    cos = tl.load(cos_ptr + place, mask=inside < HALF, other=0.0)[None, :]
    sin = tl.load(sin_ptr + place, mask=inside < HALF, other=0.0)[None, :]
    o1 = tl.where(rotated, y1 * cos - y2 * sin, first)
    o2 = tl.where(rotated, y2 * cos + y1 * sin, second)
    _put(q_ptr + token * Q * size, head, inside, Q, size, o1, o2, HALF)
    _put(k_ptr + token * G * size, head - Q, inside, G, size, o1, o2, HALF)
    _put(v_ptr + token * G * size, head - Q - G, inside, G, size, o1, o2, HALF)


@triton.jit
def _backward(
    x_ptr, dq_ptr, dk_ptr, dv_ptr, cos_ptr, sin_ptr, q_weight_ptr, k_weight_ptr, dx_ptr, sums_ptr,
    tokens, x_token, period, q_eps, k_eps,
    Q: tl.constexpr, G: tl.constexpr, HALF: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr,
    HAS_NORM: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """dx of some tokens, and their part of the norms' gradients: q's and k's, each [K]."""
    head, inside = tl.arange(0, HEADS), tl.arange(0, WIDTH)
    size = 2 * HALF
    rotated, is_q = head[:, None] < Q + G, head[:, None] < Q
    dw1, dw2 = tl.zeros((HEADS, WIDTH), tl.float32), tl.zeros((HEADS, WIDTH), tl.float32)
    for step in range(0, TOKENS):
        token = tl.program_id(0).to(tl.int64) * TOKENS + step
        if token < tokens:
            q1, q2 = _tile(dq_ptr + token * Q * size, head, inside, Q, size, HALF)
            k1, k2 = _tile(dk_ptr + token * G * size, head - Q, inside, G, size, HALF)
            v1, v2 = _tile(dv_ptr + token * G * size, head - Q - G, inside, G, size, HALF)
            d1, d2 = q1 + k1 + v1, q2 + k2 + v2
            place = (token % period) * HALF + inside
            cos = tl.load(cos_ptr + place, mask=inside < HALF, other=0.0)[None, :]
            sin = tl.load(sin_ptr + place, mask=inside < HALF, other=0.0)[None, :]
            y1 = tl.where(rotated, d1 * cos + d2 * sin, d1)
            y2 = tl.where(rotated, d2 * cos - d1 * sin, d2)
            if HAS_NORM:
                first, second = _tile(x_ptr + token * x_token, head, inside, Q + 2 * G, size, HALF)
                scale = 1.0 / tl.sqrt(
                    (tl.sum(first * first, 1) + tl.sum(second * second, 1)) / size + tl.where(head < Q, q_eps, k_eps)
                )
                w1, w2 = _weights(q_weight_ptr, k_weight_ptr, is_q, inside, HALF)
                n1, n2 = first * scale[:, None], second * scale[:, None]
                dw1 += y1 * n1
                dw2 += y2 * n2
                g1, g2 = y1 * w1, y2 * w2
                mean = ((tl.sum(g1 * n1, 1) + tl.sum(g2 * n2, 1)) / size)[:, None]
                y1 = tl.where(rotated, scale[:, None] * (g1 - n1 * mean), y1)
                y2 = tl.where(rotated, scale[:, None] * (g2 - n2 * mean), y2)
            _put(dx_ptr + token * (Q + 2 * G) * size, head, inside, Q + 2 * G, size, y1, y2, HALF)
    if HAS_NORM:
        of_k = rotated & (head[:, None] >= Q)
        sums_ptr += tl.program_id(0) * 2 * size
        mask = inside < HALF
        tl.store(sums_ptr + inside, tl.sum(tl.where(is_q, dw1, 0.0), 0), mask=mask)
        tl.store(sums_ptr + HALF + inside, tl.sum(tl.where(is_q, dw2, 0.0), 0), mask=mask)
        tl.store(sums_ptr + size + inside, tl.sum(tl.where(of_k, dw1, 0.0), 0), mask=mask)
        tl.store(sums_ptr + size + HALF + inside, tl.sum(tl.where(of_k, dw2, 0.0), 0), mask=mask)


class _AttentionHeads(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        qkv: Tensor,
        cos: Tensor,
        sin: Tensor,
        heads: tuple[int, int],
        q_weight: Tensor | None,
        k_weight: Tensor | None,
        eps: tuple[float, float],
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch, length, channels = qkv.shape
        size = channels // (heads[0] + 2 * heads[1])
        q = qkv.new_empty(batch, length, heads[0], size)
        k, v = (qkv.new_empty(batch, length, heads[1], size) for _ in range(2))
        period, options = _options(cos, heads, size, q_weight)
        _forward[(batch * length,)](
            qkv, q, k, v, cos, sin, q_weight, k_weight, qkv.stride(1), period, *eps, **options
        )  # fmt: skip
        ctx.save_for_backward(qkv, cos, sin, q_weight, k_weight)
        ctx.heads, ctx.size, ctx.eps = heads, size, eps
        return q, k, v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        qkv, cos, sin, q_weight, k_weight = ctx.saved_tensors
        tokens = qkv.shape[0] * qkv.shape[1]
        dq, dk, dv = (g.contiguous() for g in gradients)
        dx = qkv.new_empty(qkv.shape)
        programs = triton.cdiv(tokens, TOKENS)
        sums = torch.empty(programs, 2, ctx.size, dtype=torch.float32, device=qkv.device)
        period, options = _options(cos, ctx.heads, ctx.size, q_weight)
        _backward[(programs,)](
            qkv, dq, dk, dv, cos, sin, q_weight, k_weight, dx, sums, tokens, qkv.stride(1), period, *ctx.eps,
            TOKENS=TOKENS, **options,
        )  # fmt: skip
        if q_weight is None or k_weight is None:
            return dx, None, None, None, None, None, None
        of_q, of_k = sums.sum(0)
        return dx, None, None, None, of_q.to(q_weight.dtype), of_k.to(k_weight.dtype), None


def _options(cos: Tensor, heads: tuple[int, int], size: int, weight: Tensor | None) -> tuple[int, dict[str, Any]]:
    """Rows of the table of angles, and the kernels' constants."""
    half = size // 2
    total = triton.next_power_of_2(heads[0] + 2 * heads[1])
    width = triton.next_power_of_2(half)
    constants = {"Q": heads[0], "G": heads[1], "HALF": half, "HEADS": total, "WIDTH": width}
    warps = min(8, max(1, total * width // 512))
    return cos.numel() // half, {**constants, "HAS_NORM": weight is not None, "num_warps": warps}


def attention_heads_triton(inputs: HeadsInputs) -> tuple[Tensor, Tensor, Tensor]:
    """Returns what `attention_heads_naive` does; between norm and rotation nothing is rounded."""
    qkv_BTC, cos, sin, heads, norm = inputs
    q_weight, k_weight, *eps = (None, None, 0.0, 0.0) if norm is None else norm
    qkv = qkv_BTC if qkv_BTC.is_contiguous() else qkv_BTC.contiguous()
    q, k, v = _AttentionHeads.apply(qkv, cos.contiguous(), sin.contiguous(), heads, q_weight, k_weight, tuple(eps))
    return q, k, v
