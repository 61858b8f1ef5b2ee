"""SwiGLU and the gated RMSNorm in one pass each, by Triton, without gradients; shapes and semantics of `ops.gates`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024  # outputs of a program of SwiGLU


@triton.jit
def _swiglu(x_ptr, y_ptr, size, BLOCK: tl.constexpr):
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < size
    gate = tl.load(x_ptr + row * 2 * size + column, mask=inside).to(tl.float32)
    up = tl.load(x_ptr + row * 2 * size + size + column, mask=inside).to(tl.float32)
    tl.store(y_ptr + row * size + column, gate * tl.sigmoid(gate) * up, mask=inside)


def swiglu_triton(gate_up: Tensor) -> Tensor:
    """Returns what `swiglu_naive` does, rounded once."""
    rows = gate_up.reshape(-1, gate_up.shape[-1])
    size = rows.shape[1] // 2
    y = rows.new_empty(len(rows), size)
    _swiglu[(len(rows), triton.cdiv(size, BLOCK))](rows, y, size, BLOCK=BLOCK)
    return y.view(*gate_up.shape[:-1], size)


@triton.jit
def _gated_norm(y_ptr, z_ptr, weight_ptr, out_ptr, size, y_row, z_row, eps, PADDED: tl.constexpr):
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, PADDED)
    inside = column < size
    z = tl.load(z_ptr + row * z_row + column, mask=inside, other=0.0).to(tl.float32)
    gated = tl.load(y_ptr + row * y_row + column, mask=inside, other=0.0).to(tl.float32) * z * tl.sigmoid(z)
    scale = tl.rsqrt(tl.sum(gated * gated, axis=0) / size + eps)
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * size + column, gated * scale * weight, mask=inside)


def gated_norm_triton(y: Tensor, z: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Returns what `gated_norm_naive` does. y and z may be slices of rows."""
    size = y.shape[-1]
    y_rows, z_rows = y.reshape(-1, size), z.reshape(-1, size)
    out = torch.empty(z.shape, dtype=z.dtype, device=z.device)
    strides = (y_rows.stride(0), z_rows.stride(0))
    padded = triton.next_power_of_2(size)
    warps = min(16, max(1, padded // 512))
    _gated_norm[(len(y_rows),)](y_rows, z_rows, weight, out, size, *strides, eps, PADDED=padded, num_warps=warps)
    return out
