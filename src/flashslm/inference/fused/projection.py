"""Matrix-vector products at the memory's speed, with what comes before and after them fused in.

A program holds its rows of the weight in registers. They are loaded before the program waits for the kernel that
computes its input (programmatic dependent launch), so that weights stream while that kernel ends.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from flashslm.inference.fused.elementwise import convolved, history, normalised, taps

TILE_VALUES = 16_384  # weight values a program holds
NUM_WARPS = 4
MAX_BATCH = 8  # above it a matrix product is faster


@triton.jit
def _projection(
    x_ptr,
    norm_ptr,
    weight_ptr,
    out_ptr,
    conv_weight_ptr,
    conv_bias_ptr,
    conv_state_ptr,
    best_ptr,
    best_row_ptr,
    rows,
    size,
    eps,
    conv_start,
    conv_rows,
    BATCH: tl.constexpr,
    ROWS: tl.constexpr,
    PADDED: tl.constexpr,
    HEAD: tl.constexpr,
    NORM: tl.constexpr,
    SWIGLU: tl.constexpr,
    RESIDUAL: tl.constexpr,
    CONV: tl.constexpr,
    CONV_BIAS: tl.constexpr,
    BEST: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, PADDED)
    inside, real = row < rows, column < size
    tile = inside[:, None] & real[None, :]
    place = row[:, None].to(tl.int64) * size + column[None, :]
    weight = tl.load(weight_ptr + place, mask=tile, other=0.0, eviction_policy="evict_first")
    if SWIGLU:
        up_ptr = weight_ptr + tl.cast(rows, tl.int64) * size
        up = tl.load(up_ptr + place, mask=tile, other=0.0, eviction_policy="evict_first")
    if NORM:
        norm = tl.load(norm_ptr + (column % HEAD if HEAD else column), mask=real, other=0.0).to(tl.float32)
    if CONV:
        channel = row - conv_start
        here = (channel >= 0) & (channel < conv_rows)
        tap = taps(conv_weight_ptr, conv_bias_ptr, channel, here, CONV_BIAS)
    gdc_launch_dependents()
    gdc_wait()
    for b in tl.static_range(BATCH):
        if CONV:
            before = history(conv_state_ptr, b, conv_rows, channel, here)
        if RESIDUAL:
            old = tl.load(out_ptr + b * rows + row, mask=inside, other=0.0)
        x = tl.load(x_ptr + b * size + column, mask=real, other=0.0).to(tl.float32)
        if NORM:
            x = normalised(x, norm, size, eps, PADDED, HEAD)
        y = tl.sum(weight.to(tl.float32) * x[None, :], axis=1)
        if SWIGLU:
            y = y * tl.sigmoid(y) * tl.sum(up.to(tl.float32) * x[None, :], axis=1)
        if CONV:
            y = convolved(y, tap, before, conv_state_ptr, b, conv_rows, channel, here)
        if RESIDUAL:
            y += old
        tl.store(out_ptr + b * rows + row, y, mask=inside)
        if BEST:
            score = tl.where(inside, y, -float("inf"))
            best, index = tl.max(score, axis=0, return_indices=True)
            slot = b * tl.num_programs(0) + tl.program_id(0)
            tl.store(best_ptr + slot, best)
            tl.store(best_row_ptr + slot, tl.program_id(0) * ROWS + index)


class Convolution(NamedTuple):
    """A causal depthwise convolution with SiLU over some rows of a projection; weights are fp32."""

    start: int  # first row it is applied to
    weight_CK: Tensor
    bias_C: Tensor | None
    state_BCK1: Tensor  # updated in place


class Best(NamedTuple):
    """The highest output of every program and its row, for a greedy choice without a second pass over the logits."""

    score_BP: Tensor
    row_BP: Tensor


class Norm(NamedTuple):
    """RMS normalisation of the input; over each `head` channels if that is not 0."""

    weight: Tensor
    eps: float
    head: int = 0


def rows_per_program(size: int, matrices: int) -> int:
    """Rows of the weight that a program of `project` takes: powers of two that fill its registers."""
    return max(1, TILE_VALUES // (int(triton.next_power_of_2(size)) * matrices))


def project(
    x_BD: Tensor,
    weight_RD: Tensor,
    out_BR: Tensor,
    norm: Norm | None = None,
    *,
    swiglu: bool = False,
    residual: bool = False,
    conv: Convolution | None = None,
    best: Best | None = None,
) -> None:
    """out = weight norm(x), for at most MAX_BATCH inputs.

    `swiglu`: the weight is [2R, D], gate over up, and out is silu(gate x) · up x. `residual`: out is added to.
    """
    batch, size = x_BD.shape
    rows = weight_RD.shape[0] // (2 if swiglu else 1)
    rows_each = rows_per_program(size, 2 if swiglu else 1)
    nothing = x_BD
    _projection[(triton.cdiv(rows, rows_each),)](
        x_BD,
        norm.weight if norm else nothing,
        weight_RD,
        out_BR,
        conv.weight_CK if conv else nothing,
        conv.bias_C if conv and conv.bias_C is not None else nothing,
        conv.state_BCK1 if conv else nothing,
        best.score_BP if best else nothing,
        best.row_BP if best else nothing,
        rows,
        size,
        norm.eps if norm else 0.0,
        conv.start if conv else 0,
        conv.weight_CK.shape[0] if conv else 0,
        BATCH=batch,
        ROWS=rows_each,
        PADDED=triton.next_power_of_2(size),
        HEAD=norm.head if norm else 0,
        NORM=norm is not None,
        SWIGLU=swiglu,
        RESIDUAL=residual,
        CONV=conv is not None,
        CONV_BIAS=conv is not None and conv.bias_C is not None,
        BEST=best is not None,
        num_warps=NUM_WARPS,
        launch_pdl=True,
    )
