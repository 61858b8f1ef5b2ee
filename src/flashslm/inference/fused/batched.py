"""Projections of many inputs at once: a matrix product, with what comes before and after it in one kernel each.

`projection.project` is faster up to `tilings.MAX_BATCH`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from flashslm.inference.fused.projection import Norm, Product
from flashslm.inference.fused.stream import Stream

BLOCK = 1024


@triton.jit
def _normalised_heads(x, eps, SIZE: tl.constexpr, HEAD_DIM: tl.constexpr):
    """RMS norm of [SIZE] values over each HEAD_DIM, without its weight."""
    heads = tl.reshape(x, (SIZE // HEAD_DIM, HEAD_DIM))
    scale = tl.rsqrt(tl.sum(heads * heads, axis=1) / HEAD_DIM + eps)
    return tl.reshape(heads * scale[:, None], (SIZE,))


@triton.jit
def _normalise(x_ptr, norm_ptr, out_ptr, size, eps, PADDED: tl.constexpr, HEAD_DIM: tl.constexpr):
    column = tl.arange(0, PADDED)
    real = column < size
    at = tl.program_id(0).to(tl.int64) * size + column
    x = tl.load(x_ptr + at, mask=real, other=0.0).to(tl.float32)
    norm = tl.load(norm_ptr + (column % HEAD_DIM if HEAD_DIM else column), mask=real, other=0.0).to(tl.float32)
    if HEAD_DIM:
        x = _normalised_heads(x, eps, PADDED, HEAD_DIM) * norm
    else:
        x = x * norm * tl.rsqrt(tl.sum(x * x, axis=0) / size + eps)
    tl.store(out_ptr + at, x, mask=real)


@triton.jit
def _finish(
    y_ptr,
    out_ptr,
    rounded_ptr,
    ring_ptr,
    lengths_ptr,
    taps_ptr,
    bias_ptr,
    rows,
    ring_start,
    ring_rows,
    BLOCK: tl.constexpr,
    SWIGLU: tl.constexpr,
    RESIDUAL: tl.constexpr,
    RING: tl.constexpr,
    BIAS: tl.constexpr,
):
    b, row = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = row < rows
    if SWIGLU:
        gate = tl.load(y_ptr + b * rows * 2 + row, mask=inside).to(tl.float32)
        y = gate * tl.sigmoid(gate) * tl.load(y_ptr + b * rows * 2 + rows + row, mask=inside).to(tl.float32)
    else:
        y = tl.load(y_ptr + b * rows + row, mask=inside).to(tl.float32)
    out = out_ptr + b * rows + row
    if RESIDUAL:
        y += tl.load(out, mask=inside)
        tl.store(rounded_ptr + b * rows + row, y, mask=inside)
    if RING:
        channel = row - ring_start
        convolved = (channel >= 0) & (channel < ring_rows)
        length = tl.load(lengths_ptr + b)
        ring = ring_ptr + b * 4 * ring_rows + channel
        tl.store(ring + length % 4 * ring_rows, y, mask=convolved)
        mixed = y * tl.load(taps_ptr + channel * 4 + 3, mask=convolved, other=0.0)
        for tap in tl.static_range(3):
            earlier = tl.load(ring + (length + 1 + tap) % 4 * ring_rows, mask=convolved, other=0.0).to(tl.float32)
            mixed += earlier * tl.load(taps_ptr + channel * 4 + tap, mask=convolved, other=0.0)
        if BIAS:
            mixed += tl.load(bias_ptr + channel, mask=convolved, other=0.0)
        y = tl.where(convolved, mixed * tl.sigmoid(mixed), y)
    tl.store(out, y, mask=inside)


def normalised(x_BD: Tensor, norm: Norm) -> Tensor:
    """The inputs after the norm, in their dtype."""
    (batch, size), out_BD = x_BD.shape, torch.empty_like(x_BD)
    padded = triton.next_power_of_2(size)
    _normalise[(batch,)](x_BD, norm.weight, out_BD, size, norm.eps, PADDED=padded, HEAD_DIM=norm.head_dim)
    return out_BD


def finish(y_BR: Tensor, product: Product) -> None:
    """What follows the product `y`: SwiGLU, the sum with the stream, or the convolution of the ring's rows."""
    (out, rounded), ring = product.outputs(), product.ring
    batch, rows = out.shape
    _finish[(batch, triton.cdiv(rows, BLOCK))](
        y_BR,
        out,
        rounded,
        ring.inputs if ring else y_BR,
        ring.lengths_B if ring else y_BR,
        ring.taps_CK if ring else y_BR,
        ring.bias_C if ring and ring.bias_C is not None else y_BR,
        rows,
        ring.start if ring else 0,
        ring.inputs.shape[2] if ring else 0,
        BLOCK=BLOCK,
        SWIGLU=product.swiglu,
        RESIDUAL=isinstance(product.out_BR, Stream),
        RING=ring is not None,
        BIAS=ring is not None and ring.bias_C is not None,
    )


def project_batch(product: Product) -> None:
    """For any number of inputs; the product itself has the weight's dtype.

    The rows that a convolution follows also go, convolved and activated, where they belong in `out`.
    """
    x_BD, weight_RD, out_BR, norm, swiglu, ring = product
    assert isinstance(weight_RD, Tensor)  # 8 bits are for `projection.project`
    if norm is not None:
        x_BD = normalised(x_BD, norm)
    plain = None
    if isinstance(out_BR, Tensor) and not swiglu and ring is None and out_BR.dtype == weight_RD.dtype:
        plain = out_BR
    y_BR = torch.mm(x_BD, weight_RD.T, out=plain)
    if plain is None:
        finish(y_BR, product)
