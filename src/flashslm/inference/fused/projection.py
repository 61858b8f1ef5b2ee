"""Matrix-vector products at the memory's speed, with what comes before and after them fused in.

A program holds its rows of the weight in registers. It asks for them before it waits for the kernel that computes its
input (programmatic dependent launch), so that weights stream while that kernel ends.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

TILE_VALUES = 16_384  # weight values that a program holds, at least one row
LONG_ROW = 4096  # programs with longer rows have twice the warps
SMALLEST_CHUNK = 256
MAX_BATCH = 2  # above it a matrix product is faster


@triton.jit
def normalised_heads(x, eps, SIZE: tl.constexpr, HEAD: tl.constexpr):
    """RMS norm of [SIZE] values over each HEAD, without its weight."""
    heads = tl.reshape(x, (SIZE // HEAD, HEAD))
    scale = tl.rsqrt(tl.sum(heads * heads, axis=1) / HEAD + eps)
    return tl.reshape(heads * scale[:, None], (SIZE,))


@triton.jit
def _tile(weight_ptr, row, rows, size, CHUNKS: tl.constexpr, CHUNK: tl.constexpr):
    """Rows of a matrix in registers, as CHUNKS tiles [ROWS, CHUNK]."""
    column = tl.arange(0, CHUNK)
    tiles = ()
    for c in tl.static_range(CHUNKS):
        at = c * CHUNK + column
        place = row[:, None].to(tl.int64) * size + at[None, :]
        mask = (row < rows)[:, None] & (at < size)[None, :]
        # Weights are read once a step: the L2 cache is for what is read again.
        tiles = tiles + (tl.load(weight_ptr + place, mask=mask, other=0.0, eviction_policy="evict_first"),)
    return tiles


@triton.jit
def _dot(tiles, inputs, CHUNKS: tl.constexpr):
    """Products [ROWS] of the tiles [ROWS, CHUNK] with the chunks of an input."""
    products = tiles[0].to(tl.float32) * inputs[0][None, :]
    for c in tl.static_range(1, CHUNKS):
        products += tiles[c].to(tl.float32) * inputs[c][None, :]
    return tl.sum(products, axis=1)


@triton.jit
def _norm_weights(norm_ptr, size, CHUNKS: tl.constexpr, CHUNK: tl.constexpr, HEAD: tl.constexpr):
    """The norm's weight in chunks; that of a head again and again."""
    norms = ()
    for c in tl.static_range(CHUNKS):
        at = c * CHUNK + tl.arange(0, CHUNK)
        norms = norms + (tl.load(norm_ptr + (at % HEAD if HEAD else at), mask=at < size, other=0.0),)
    return norms


@triton.jit
def _normalised(xs, norms, b: tl.constexpr, size, eps, CHUNKS: tl.constexpr, CHUNK: tl.constexpr, HEAD: tl.constexpr):
    """The chunks of input b times the norm's weight, and the scale that their products still lack."""
    inputs = ()
    squares = tl.zeros((CHUNK,), tl.float32)
    for c in tl.static_range(CHUNKS):
        x = xs[b * CHUNKS + c]
        if HEAD:
            x = normalised_heads(x, eps, CHUNK, HEAD)
        else:
            squares += x * x
        inputs = inputs + (x * norms[c].to(tl.float32),)
    scale = 1.0 if HEAD else tl.rsqrt(tl.sum(squares, axis=0) / size + eps)
    return inputs, scale


@triton.jit
def _chosen(xs, b: tl.constexpr, CHUNKS: tl.constexpr):
    """The chunks of input b as they are."""
    inputs = ()
    for c in tl.static_range(CHUNKS):
        inputs = inputs + (xs[b * CHUNKS + c],)
    return inputs, 1.0


@triton.jit
def _input(x_ptr, size, CHUNKS: tl.constexpr, CHUNK: tl.constexpr):
    """The chunks of an input, fp32."""
    chunks = ()
    for c in tl.static_range(CHUNKS):
        at = c * CHUNK + tl.arange(0, CHUNK)
        chunks = chunks + (tl.load(x_ptr + at, mask=at < size, other=0.0).to(tl.float32),)
    return chunks


@triton.jit
def _ring_places(lengths_ptr, ring_rows, BATCH: tl.constexpr):
    """Where each sequence's ring takes the present token."""
    places = ()
    for b in tl.static_range(BATCH):
        places = places + ((b * 4 + tl.load(lengths_ptr + b).to(tl.int32) % 4) * ring_rows,)
    return places


@triton.jit
def _store_best(y, inside, best_ptr, best_row_ptr, b: tl.constexpr, ROWS: tl.constexpr):
    """This program's highest output for input b, and its row."""
    score, index = tl.max(tl.where(inside, y, -float("inf")), axis=0, return_indices=True)
    place = b * tl.num_programs(0) + tl.program_id(0)
    tl.store(best_ptr + place, score)
    tl.store(best_row_ptr + place, tl.program_id(0) * ROWS + index)


@triton.jit
def _projection(
    x_ptr,
    norm_ptr,
    weight_ptr,
    out_ptr,
    rounded_ptr,
    ring_ptr,
    lengths_ptr,
    best_ptr,
    best_row_ptr,
    rows,
    size,
    eps,
    ring_start,
    ring_rows,
    BATCH: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNKS: tl.constexpr,
    CHUNK: tl.constexpr,
    HEAD: tl.constexpr,
    NORM: tl.constexpr,
    SWIGLU: tl.constexpr,
    RESIDUAL: tl.constexpr,
    RING: tl.constexpr,
    BEST: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside, kept = row < rows, row < rows
    tiles = _tile(weight_ptr, row, rows, size, CHUNKS, CHUNK)
    if SWIGLU:
        ups = _tile(weight_ptr + tl.cast(rows, tl.int64) * size, row, rows, size, CHUNKS, CHUNK)
    xs, old = (), ()
    if NORM:
        norms = _norm_weights(norm_ptr, size, CHUNKS, CHUNK, HEAD)
    if RING:
        channel = row - ring_start
        convolved = (channel >= 0) & (channel < ring_rows)
        kept = inside & (~convolved)
        places = _ring_places(lengths_ptr, ring_rows, BATCH)
    gdc_launch_dependents()
    gdc_wait()
    for b in tl.static_range(BATCH):
        xs = xs + _input(x_ptr + b * size, size, CHUNKS, CHUNK)
        if RESIDUAL:
            old = old + (tl.load(out_ptr + b * rows + row, mask=inside, other=0.0),)
    for b in tl.static_range(BATCH):
        if NORM:
            inputs, scale = _normalised(xs, norms, b, size, eps, CHUNKS, CHUNK, HEAD)
        else:
            inputs, scale = _chosen(xs, b, CHUNKS)
        y = _dot(tiles, inputs, CHUNKS) * scale
        if SWIGLU:
            y = y * tl.sigmoid(y) * (_dot(ups, inputs, CHUNKS) * scale)
        if RESIDUAL:
            y += old[b]
            tl.store(rounded_ptr + b * rows + row, y, mask=inside)
        if RING:
            tl.store(ring_ptr + places[b] + channel, y, mask=convolved)
        tl.store(out_ptr + b * rows + row, y, mask=kept)
        if BEST:
            _store_best(y, inside, best_ptr, best_row_ptr, b, ROWS)


class Stream(NamedTuple):
    """The residual stream [B, D], fp32, and a rounded copy of it, which the next operator reads."""

    exact: Tensor
    rounded: Tensor


class Ring(NamedTuple):
    """The last four inputs of a short convolution [B, 4, C]: that of position p is in place p mod 4."""

    inputs: Tensor
    start: int  # the row of the projection that is its first channel
    lengths_B: Tensor  # positions of the present tokens


class Best(NamedTuple):
    """The highest output of every program and its row, for a greedy choice without a second pass over the logits."""

    score_BP: Tensor
    row_BP: Tensor

    @classmethod
    def allocate(cls, batch: int, weight_VD: Tensor) -> "Best":
        rows, size = weight_VD.shape
        score_BP = torch.empty(batch, -(-rows // tiling(size).rows), device=weight_VD.device)
        return cls(score_BP, torch.empty_like(score_BP, dtype=torch.int32))


class Norm(NamedTuple):
    """RMS normalisation of the input; over each `head` channels if that is not 0."""

    weight: Tensor
    eps: float
    head: int = 0


class Tiling(NamedTuple):
    """What a program holds: `rows` of `chunks` x `chunk` values, in `warps`."""

    rows: int
    chunks: int
    chunk: int
    warps: int


def tiling(size: int, matrices: int = 1) -> Tiling:
    """Rows as long as `size`: cut into powers of two where that divides them, else padded to the next one."""
    chunk = size & -size
    if chunk < SMALLEST_CHUNK:
        chunk = 1 << (size - 1).bit_length()
    chunks = -(-size // chunk)
    fitting = max(1, TILE_VALUES // (chunk * chunks * matrices))
    return Tiling(1 << (fitting.bit_length() - 1), chunks, chunk, 8 if size > LONG_ROW else 4)


def project(
    x_BD: Tensor,
    weight_RD: Tensor,
    out_BR: Tensor | Stream,
    norm: Norm | None = None,
    *,
    swiglu: bool = False,
    ring: Ring | None = None,
    best: Best | None = None,
) -> None:
    """out = weight norm(x), for at most MAX_BATCH inputs; a stream is added to.

    `swiglu`: the weight is [2R, D], gate over up, and out is silu(gate x) · up x. `ring`: the rows that a convolution
    follows go there instead.
    """
    batch, size = x_BD.shape
    rows = weight_RD.shape[0] // (2 if swiglu else 1)
    tile = tiling(size, 2 if swiglu else 1)
    out, rounded = out_BR if isinstance(out_BR, Stream) else (out_BR, out_BR)
    _projection[(triton.cdiv(rows, tile.rows),)](
        x_BD,
        norm.weight if norm else x_BD,
        weight_RD,
        out,
        rounded,
        *_ring_arguments(ring, x_BD),
        best.score_BP if best else x_BD,
        best.row_BP if best else x_BD,
        rows,
        size,
        norm.eps if norm else 0.0,
        ring.start if ring else 0,
        ring.inputs.shape[2] if ring else 0,
        BATCH=batch,
        ROWS=tile.rows,
        CHUNKS=tile.chunks,
        CHUNK=tile.chunk,
        HEAD=norm.head if norm else 0,
        NORM=norm is not None,
        SWIGLU=swiglu,
        RESIDUAL=isinstance(out_BR, Stream),
        RING=ring is not None,
        BEST=best is not None,
        num_warps=tile.warps,
        launch_pdl=True,
    )


def _ring_arguments(ring: Ring | None, nothing: Tensor) -> tuple[Any, Any]:
    return (ring.inputs, ring.lengths_B) if ring else (nothing, nothing)
