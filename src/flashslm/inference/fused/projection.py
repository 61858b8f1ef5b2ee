"""Matrix-vector products at the memory's speed, with what comes before and after them fused in (projection.cu).

A block asks for its weights before it waits for the kernel that computes its input (programmatic launch), into
registers and shared memory both, so that the memory streams on while that kernel ends.
"""

import ctypes
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from flashslm.inference.fused.cuda_kernel import Kernel, load
from flashslm.inference.fused.stream import Stream
from flashslm.inference.fused.tilings import Tiling, tiling
from flashslm.ops.int8_weights import Int8Weight

VALUES_PER_LOAD = 8  # 16 bytes, to which rows are aligned
REGISTERS, MIN_REGISTERS = 65_536, 40  # per SM; per thread, besides the weights that it holds
MAX_BLOCKS = 16  # per SM


class Ring(NamedTuple):
    """The last four inputs of a short convolution [B, 4, C]: that of position p is in place p mod 4."""

    inputs: Tensor
    start: int  # the row of the projection that is its first channel
    lengths_B: Tensor  # positions of the present tokens
    taps_CK: Tensor  # fp32, the oldest input's first
    bias_C: Tensor | None = None  # fp32


class Best(NamedTuple):
    """The highest output of every block and its row, for a greedy choice without a second pass over the logits."""

    score_BP: Tensor
    row_BP: Tensor

    @classmethod
    def allocate(cls, batch: int, weight_VD: Tensor | Int8Weight) -> "Best":
        values_VD = weight_VD.values_RD if isinstance(weight_VD, Int8Weight) else weight_VD
        blocks = -(-len(values_VD) // _tiling(weight_VD).rows)
        score_BP = torch.empty(batch, blocks, device=values_VD.device)
        return cls(score_BP, torch.empty_like(score_BP, dtype=torch.int32))


class Norm(NamedTuple):
    """RMS normalisation of the input; over each `head_dim` channels (a power of two, 32 to 256) if that is not 0."""

    weight: Tensor
    eps: float
    head_dim: int = 0


class Product(NamedTuple):
    """out = weight norm(x), for inputs [B, D]; a stream is added to.

    `swiglu`: the weight is [2R, D], gate over up, and out is silu(gate x) · up x. `ring`: the rows that a convolution
    follows are its inputs.
    """

    x_BD: Tensor
    weight_RD: Tensor | Int8Weight
    out_BR: Tensor | Stream
    norm: Norm | None = None
    swiglu: bool = False
    ring: Ring | None = None

    def outputs(self) -> tuple[Tensor, Tensor]:
        """Where sums go, and where a stream's rounded ones do."""
        return self.out_BR if isinstance(self.out_BR, Stream) else (self.out_BR, self.out_BR)


def project(product: Product, best: Best | None = None) -> None:
    """For at most `tilings.MAX_BATCH` inputs. The rows that a convolution follows go to the ring instead of `out`.

    D is a multiple of VALUES_PER_LOAD, of twice that with weights of 8 bits.
    """
    x_BD, weight_RD, out_BR, norm, swiglu, ring = product
    batch, size = x_BD.shape
    rows = weight_RD.shape[0] // (2 if swiglu else 1)
    out, rounded = product.outputs()
    tile = _tiling(weight_RD, swiglu).for_inputs(batch)
    weight, scales = weight_RD if isinstance(weight_RD, Int8Weight) else (weight_RD, None)
    macros = {
        "SIZE": size,
        "BATCH": batch,
        "HALF": x_BD.dtype == torch.float16,
        "NORM": norm is not None,
        "NORM_FLOAT": norm is not None and norm.weight.dtype == torch.float32,
        "HEAD_DIM": norm.head_dim if norm else 0,
        "SWIGLU": swiglu,
        "RESIDUAL": isinstance(out_BR, Stream),
        "RING": ring is not None,
        "BEST": best is not None,
        "OUT_FLOAT": out.dtype == torch.float32,
        "INT8": scales is not None,
    }
    arguments = _Arguments(
        *(_address(t) for t in (x_BD, norm.weight if norm else None, weight, scales, out, rounded)),
        *(_address(t) for t in (*((ring.inputs, ring.lengths_B) if ring else (None, None)), *(best or (None, None)))),
        rows,
        norm.eps if norm else 0.0,
        ring.start if ring else 0,
        ring.inputs.shape[2] if ring else 0,
    )
    kernel = _kernel(x_BD.device.index, tile, tuple((name, int(value)) for name, value in macros.items()))
    kernel.launch(-(-rows // (tile.rows // (2 if swiglu else 1))), arguments)


def _tiling(weight: Tensor | Int8Weight, swiglu: bool = False) -> Tiling:
    """A row of bytes is shared as one of half as many values of two bytes."""
    rows, size = weight.shape[0] // (2 if swiglu else 1), weight.shape[1]
    int8 = isinstance(weight, Int8Weight)
    return tiling(rows, -(-size // 2) if int8 else size, swiglu, int8)


class _Arguments(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "norm", "weight", "scales", "out", "rounded")),
        *((name, ctypes.c_void_p) for name in ("ring", "lengths", "best", "best_row")),
        ("rows", ctypes.c_int),
        ("eps", ctypes.c_float),
        ("ring_start", ctypes.c_int),
        ("ring_rows", ctypes.c_int),
    )


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


@cache
def _kernel(device: int, tile: Tiling, macros: tuple[tuple[str, int], ...]) -> Kernel:
    """The kernel of a shape, with as many blocks per SM as registers allow without spilling."""
    sizes = dict(macros)
    shared_bytes = 16 * tile.threads * tile.in_shared
    sizes |= {"TILE": tile.warp_rows, "COLUMN_WARPS": tile.columns, "ROW_WARPS": tile.strips}
    sizes |= {"IN_REGISTERS": tile.in_registers, "IN_SHARED": tile.in_shared}
    most = REGISTERS // (tile.threads * (4 * tile.in_registers + MIN_REGISTERS))
    for blocks in range(max(1, min(most, MAX_BLOCKS)), 0, -1):
        kernel = load("projection.cu", "project", sizes | {"BLOCKS": blocks}, tile.threads, shared_bytes, device)
        if not kernel.spills:
            break
    return kernel
