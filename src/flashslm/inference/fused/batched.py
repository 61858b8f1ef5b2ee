"""Projections of many inputs at once: a matrix product, with what comes before and after it in one kernel each.

The signature is that of `projection.project`, which is faster up to its MAX_BATCH.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from flashslm.inference.fused.elementwise import convolved, history, normalised, taps
from flashslm.inference.fused.projection import Convolution, Norm

BLOCK = 1024


@triton.jit
def _normalise(x_ptr, norm_ptr, out_ptr, size, eps, PADDED: tl.constexpr, HEAD: tl.constexpr, NORM: tl.constexpr):
    column = tl.arange(0, PADDED)
    real = column < size
    at = tl.program_id(0).to(tl.int64) * size + column
    x = tl.load(x_ptr + at, mask=real, other=0.0).to(tl.float32)
    if NORM:
        norm = tl.load(norm_ptr + (column % HEAD if HEAD else column), mask=real, other=0.0).to(tl.float32)
        x = normalised(x, norm, size, eps, PADDED, HEAD)
    tl.store(out_ptr + at, x, mask=real)


@triton.jit
def _finish(
    y_ptr,
    out_ptr,
    conv_weight_ptr,
    conv_bias_ptr,
    conv_state_ptr,
    rows,
    conv_start,
    conv_rows,
    BLOCK: tl.constexpr,
    SWIGLU: tl.constexpr,
    RESIDUAL: tl.constexpr,
    CONV: tl.constexpr,
    CONV_BIAS: tl.constexpr,
):
    b, row = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = row < rows
    if SWIGLU:
        gate = tl.load(y_ptr + b * rows * 2 + row, mask=inside).to(tl.float32)
        y = gate * tl.sigmoid(gate) * tl.load(y_ptr + b * rows * 2 + rows + row, mask=inside).to(tl.float32)
    else:
        y = tl.load(y_ptr + b * rows + row, mask=inside).to(tl.float32)
    if CONV:
        channel = row - conv_start
        here = (channel >= 0) & (channel < conv_rows)
        tap = taps(conv_weight_ptr, conv_bias_ptr, channel, here, CONV_BIAS)
        before = history(conv_state_ptr, b, conv_rows, channel, here)
        y = convolved(y, tap, before, conv_state_ptr, b, conv_rows, channel, here)
    out = out_ptr + b * rows + row
    if RESIDUAL:
        y += tl.load(out, mask=inside)
    tl.store(out, y, mask=inside)


def project_batch(
    x_BD: Tensor,
    weight_RD: Tensor,
    out_BR: Tensor,
    norm: Norm | None = None,
    *,
    swiglu: bool = False,
    residual: bool = False,
    conv: Convolution | None = None,
) -> None:
    """What `project` does, for any number of inputs; the product itself has the weight's dtype."""
    (batch, size), rows = x_BD.shape, out_BR.shape[1]
    if norm is not None or x_BD.dtype != weight_RD.dtype:
        normed = torch.empty_like(x_BD, dtype=weight_RD.dtype)
        _normalise[(batch,)](
            x_BD,
            norm.weight if norm else x_BD,
            normed,
            size,
            norm.eps if norm else 0.0,
            PADDED=triton.next_power_of_2(size),
            HEAD=norm.head if norm else 0,
            NORM=norm is not None,
        )
        x_BD = normed
    plain = not (swiglu or residual or conv) and out_BR.dtype == weight_RD.dtype
    y_BR = torch.mm(x_BD, weight_RD.T, out=out_BR if plain else None)
    if plain:
        return
    _finish[(batch, triton.cdiv(rows, BLOCK))](
        y_BR,
        out_BR,
        conv.weight_CK if conv else y_BR,
        conv.bias_C if conv and conv.bias_C is not None else y_BR,
        conv.state_BCK1 if conv else y_BR,
        rows,
        conv.start if conv else 0,
        conv.weight_CK.shape[0] if conv else 0,
        BLOCK=BLOCK,
        SWIGLU=swiglu,
        RESIDUAL=residual,
        CONV=conv is not None,
        CONV_BIAS=conv is not None and conv.bias_C is not None,
    )
