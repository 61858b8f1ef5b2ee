"""Products with more inputs than a vector product takes well: programs of some rows, norm and epilogue inside.

The first block of weights is requested before the wait for the kernel that
computes the input. Convolutions, norms of heads, and norms in fp16, where an input times the norm's weight could
overflow, stay kernels of their own.
"""

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from flashslm.inference.fused.batched import finish, normalised
from flashslm.inference.fused.projection import Product
from flashslm.inference.fused.step_plan import ProductTile, usual_tile
from flashslm.inference.fused.stream import Stream

MIN_BATCH, MAX_BATCH = 16, 64  # inputs of a program: the smallest operand of a tensor-core product, and what fits


@triton.jit
def _weights(weight_ptr, row, column, rows, last, SIZE: tl.constexpr):
    """A block [R, K] of the rows; 0 from column `last` on."""
    inside = (row < rows)[:, None] & (column < last)[None, :]
    return tl.load(weight_ptr + row.to(tl.int64)[:, None] * SIZE + column[None, :], mask=inside, other=0.0)


@triton.jit
def _inputs(x_ptr, norm_ptr, b, column, batch, SIZE: tl.constexpr, NORM: tl.constexpr):
    """A block [B, K] of the inputs, times the norm's weight but not scaled, and the sums of their squares [B]."""
    inside = (b < batch)[:, None] & (column < SIZE)[None, :]
    x = tl.load(x_ptr + b[:, None] * SIZE + column[None, :], mask=inside, other=0.0)
    squares = tl.zeros_like(b).to(tl.float32)
    if NORM:
        wide = x.to(tl.float32)
        squares = tl.sum(wide * wide, axis=1)
        x = (wide * tl.load(norm_ptr + column, mask=column < SIZE, other=0.0).to(tl.float32)[None, :]).to(x.dtype)
    return x, squares


@triton.jit
def _product(
    x_ptr,
    norm_ptr,
    weight_ptr,
    out_ptr,
    rounded_ptr,
    batch,
    rows,
    eps,
    SIZE: tl.constexpr,
    HALF: tl.constexpr,
    BATCH: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    NORM: tl.constexpr,
    SWIGLU: tl.constexpr,
    RESIDUAL: tl.constexpr,
):
    """Two sums at a time, since each waits for its own last product: gate and up, or both halves of the columns."""
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    b, column = tl.program_id(1) * BATCH + tl.arange(0, BATCH), tl.arange(0, BLOCK_K)
    second_ptr = weight_ptr + tl.cast(rows, tl.int64) * SIZE if SWIGLU else weight_ptr + HALF
    first_last = HALF if HALF < SIZE else SIZE
    second_last = SIZE if SWIGLU else SIZE - HALF
    w = _weights(weight_ptr, row, column, rows, first_last, SIZE)
    w_second = _weights(second_ptr, row, column, rows, second_last, SIZE)
    gdc_launch_dependents()
    gdc_wait()
    x, squares = _inputs(x_ptr, norm_ptr, b, column, batch, SIZE, NORM)
    first = tl.dot(w, tl.trans(x))
    if not SWIGLU:
        x, more = _inputs(x_ptr, norm_ptr, b, column + HALF, batch, SIZE, NORM)
        squares += more
    second = tl.dot(w_second, tl.trans(x))
    for start in tl.range(BLOCK_K, HALF, BLOCK_K, num_stages=STAGES):
        at = start + column
        w = _weights(weight_ptr, row, at, rows, first_last, SIZE)
        w_second = _weights(second_ptr, row, at, rows, second_last, SIZE)
        x, more = _inputs(x_ptr, norm_ptr, b, at, batch, SIZE, NORM)
        squares += more
        first = tl.dot(w, tl.trans(x), first)
        if not SWIGLU:
            x, more = _inputs(x_ptr, norm_ptr, b, at + HALF, batch, SIZE, NORM)
            squares += more
        second = tl.dot(w_second, tl.trans(x), second)
    scale = tl.rsqrt(squares / SIZE + eps)[None, :] if NORM else 1.0
    if SWIGLU:
        gate = first * scale
        y = gate * tl.sigmoid(gate) * (second * scale)
    else:
        y = (first + second) * scale
    place = b.to(tl.int64)[:, None] * rows + row[None, :]
    inside = (b < batch)[:, None] & (row < rows)[None, :]
    y = tl.trans(y)
    if RESIDUAL:
        y += tl.load(out_ptr + place, mask=inside, other=0.0)
        tl.store(rounded_ptr + place, y, mask=inside)
    tl.store(out_ptr + place, y, mask=inside)


def project_tiled(product: Product, tile: ProductTile | None = None) -> None:
    """What `project_batch` does, for any number of inputs; `tile` None: the usual one."""
    x_BD, weight_RD, out_BR, norm, swiglu, ring = product
    batch, size = x_BD.shape
    inside = norm if norm is not None and not norm.head_dim and x_BD.dtype != torch.float16 else None
    if norm is not None and inside is None:
        x_BD = normalised(x_BD, norm)
    out, rounded = product.outputs()
    y_BR = torch.empty_like(out) if ring is not None else out
    rows = out.shape[1]
    tile = tile or usual_tile(rows, size, batch)
    inputs = min(MAX_BATCH, max(MIN_BATCH, triton.next_power_of_2(batch)))
    _product[(triton.cdiv(rows, tile.rows), triton.cdiv(batch, inputs))](
        x_BD,
        inside.weight if inside else x_BD,
        weight_RD,
        y_BR,
        rounded,
        batch,
        rows,
        inside.eps if inside else 0.0,
        SIZE=size,
        HALF=size if swiglu else triton.cdiv(triton.cdiv(size, 2), tile.columns) * tile.columns,
        BATCH=inputs,
        BLOCK_R=tile.rows,
        BLOCK_K=tile.columns,
        STAGES=tile.stages,
        NORM=inside is not None,
        SWIGLU=swiglu,
        RESIDUAL=isinstance(out_BR, Stream),
        num_warps=tile.warps,
        launch_pdl=True,
    )
    if ring is not None:
        finish(y_BR, product)
