"""The short causal convolution with SiLU in Triton; shapes and semantics of `ops.causal_conv`, for four taps.

A program walks along the tokens of a segment with its channels' window in registers: every value is read once, four
rows ahead of its use, and written once. Outputs are cut into parts, and gradients taken in parts, so that neither
needs a copy. Channels that are not convolved are handed through, so that a joined projection's gradient is whole.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from flashslm.ops.causal_conv import ConvInputs, last_inputs
from flashslm.ops.documents import positions_in_document
from flashslm.ops.precision import without_autocast

TAPS = 4
SEGMENT = 128  # tokens of a program, a multiple of 4; its backward pass computes three more
CHANNELS, WARPS = 128, 2  # of a program: two channels a thread leave room for its sums in registers


@triton.jit
def _part(block, blocks_0, blocks_1, start_1, start_2, size_0, size_1, size_2, CHANNELS: tl.constexpr):
    """Which part a block of channels lies in: its number, first channel in x, channels in the part, their mask."""
    if block < blocks_0:
        part, inside, start, size = 0, block, 0, size_0
    elif block < blocks_0 + blocks_1:
        part, inside, start, size = 1, block - blocks_0, start_1, size_1
    else:
        part, inside, start, size = 2, block - blocks_0 - blocks_1, start_2, size_2
    channel = inside * CHANNELS + tl.arange(0, CHANNELS)
    return part, start, size, channel, channel < size


@triton.jit
def _window(place, x1, x2, x3, i0, i1, i2):
    """The three values before a token at this place of its document, the nearest first; before it stands the state."""
    before_1 = tl.where(place >= 1, x1, i2)
    before_2 = tl.where(place >= 2, x2, tl.where(place == 1, i2, i1))
    before_3 = tl.where(place >= 3, x3, tl.where(place == 2, i2, tl.where(place == 1, i1, i0)))
    return before_1, before_2, before_3


@triton.jit
def _multiple(stride, STRIDE_UNIT: tl.constexpr):
    """The stride itself, as the compiler sees that it is a multiple: by itself it looks for multiples of 16 alone."""
    return stride // STRIDE_UNIT * STRIDE_UNIT


@triton.jit
def _row(pointer, token, length, stride, channel, mask):
    return tl.load(pointer + token * stride + channel, mask=mask & (token >= 0) & (token < length), other=0.0).to(
        tl.float32
    )


@triton.jit
def _taps(weight_ptr, inside, mask):
    """The four taps of each channel, fp32; the last meets the token itself."""
    at = weight_ptr + inside * 4
    w0, w1 = tl.load(at, mask=mask, other=0.0), tl.load(at + 1, mask=mask, other=0.0)
    w2, w3 = tl.load(at + 2, mask=mask, other=0.0), tl.load(at + 3, mask=mask, other=0.0)
    return w0.to(tl.float32), w1.to(tl.float32), w2.to(tl.float32), w3.to(tl.float32)


@triton.jit
def _bias_and_state(
    bias_ptr, initial_ptr, row, stride, inside, mask,
    HAS_BIAS: tl.constexpr, HAS_INITIAL: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    zero = tl.zeros((CHANNELS,), tl.float32)
    bias, i0, i1, i2 = zero, zero, zero, zero
    if HAS_BIAS:
        bias = tl.load(bias_ptr + inside, mask=mask, other=0.0).to(tl.float32)
    if HAS_INITIAL:
        at = initial_ptr + row * stride + inside * 3
        i0 = tl.load(at, mask=mask, other=0.0).to(tl.float32)
        i1 = tl.load(at + 1, mask=mask, other=0.0).to(tl.float32)
        i2 = tl.load(at + 2, mask=mask, other=0.0).to(tl.float32)
    return bias, i0, i1, i2


@triton.jit
def _of_part(part, pointer_0, pointer_1, pointer_2):
    pointer = pointer_0
    if part == 1:
        pointer = pointer_1
    if part == 2:
        pointer = pointer_2
    return pointer


@triton.jit
def _four_rows(pointer, token, length, stride, channel, mask):
    r0 = _row(pointer, token, length, stride, channel, mask)
    r1 = _row(pointer, token + 1, length, stride, channel, mask)
    r2 = _row(pointer, token + 2, length, stride, channel, mask)
    r3 = _row(pointer, token + 3, length, stride, channel, mask)
    return r0, r1, r2, r3


@triton.jit
def _place(place_ptr, row, token, length, PACKED: tl.constexpr):
    """A token's place in its document."""
    if PACKED:
        return tl.load(place_ptr + row * length + token, mask=token < length, other=0)
    else:
        return token


@triton.jit
def _convolve(x0, x1, x2, x3, w0, w1, w2, w3, bias, i0, i1, i2, place):
    b1, b2, b3 = _window(place, x1, x2, x3, i0, i1, i2)
    return w3 * x0 + w2 * b1 + w1 * b2 + w0 * b3 + bias


@triton.jit
def _silu(x):
    return x * tl.sigmoid(x)


@triton.jit
def _forward(
    x_ptr, weight_ptr, bias_ptr, initial_ptr, place_ptr, y0_ptr, y1_ptr, y2_ptr,
    length, channels, x_batch, x_token, initial_batch,
    blocks_0, blocks_1, start_1, start_2, size_0, size_1, size_2,
    HAS_BIAS: tl.constexpr, HAS_INITIAL: tl.constexpr, PACKED: tl.constexpr, STRIDE_UNIT: tl.constexpr,
    SEGMENT: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    x_batch, x_token = _multiple(x_batch, STRIDE_UNIT), _multiple(x_token, STRIDE_UNIT)
    row, first = tl.program_id(2).to(tl.int64), tl.program_id(1).to(tl.int64) * SEGMENT
    part, start, size, channel, mask = _part(
        tl.program_id(0), blocks_0, blocks_1, start_1, start_2, size_0, size_1, size_2, CHANNELS
    )
    inside = start + channel
    w0, w1, w2, w3 = _taps(weight_ptr, inside, mask)
    bias, i0, i1, i2 = _bias_and_state(
        bias_ptr, initial_ptr, row, initial_batch, inside, mask, HAS_BIAS, HAS_INITIAL, CHANNELS
    )
    x_ptr += row * x_batch
    x3 = _row(x_ptr, first - 3, length, x_token, inside, mask)
    x2 = _row(x_ptr, first - 2, length, x_token, inside, mask)
    x1 = _row(x_ptr, first - 1, length, x_token, inside, mask)
    y_ptr = _of_part(part, y0_ptr, y1_ptr, y2_ptr)
    for step in range(0, SEGMENT, 4):  # four rows are asked for before the first is used
        token = first + step
        n0, n1, n2, n3 = _four_rows(x_ptr, token, length, x_token, inside, mask)
        at = _place(place_ptr, row, token, length, PACKED)
        y0 = _silu(_convolve(n0, x1, x2, x3, w0, w1, w2, w3, bias, i0, i1, i2, at))
        at = _place(place_ptr, row, token + 1, length, PACKED)
        y1 = _silu(_convolve(n1, n0, x1, x2, w0, w1, w2, w3, bias, i0, i1, i2, at))
        at = _place(place_ptr, row, token + 2, length, PACKED)
        y2 = _silu(_convolve(n2, n1, n0, x1, w0, w1, w2, w3, bias, i0, i1, i2, at))
        at = _place(place_ptr, row, token + 3, length, PACKED)
        y3 = _silu(_convolve(n3, n2, n1, n0, w0, w1, w2, w3, bias, i0, i1, i2, at))
        y_row = y_ptr + (row * length + token) * size + channel
        tl.store(y_row, y0.to(y0_ptr.dtype.element_ty), mask=mask & (token < length))
        tl.store(y_row + size, y1.to(y0_ptr.dtype.element_ty), mask=mask & (token + 1 < length))
        tl.store(y_row + 2 * size, y2.to(y0_ptr.dtype.element_ty), mask=mask & (token + 2 < length))
        tl.store(y_row + 3 * size, y3.to(y0_ptr.dtype.element_ty), mask=mask & (token + 3 < length))
        x3, x2, x1 = n1, n2, n3


@triton.jit
def _pick(index: tl.constexpr, r0, r1, r2, r3):
    picked = r0
    if index == 1:
        picked = r1
    if index == 2:
        picked = r2
    if index == 3:
        picked = r3
    return picked


@triton.jit
def _state_gradient(g, place, w0, w1, w2):
    """What a token at this place of its document adds to the gradient of the state, the oldest value first."""
    of_0 = g * tl.where(place == 0, w0, 0.0)
    of_1 = g * tl.where(place == 0, w1, tl.where(place == 1, w0, 0.0))
    of_2 = g * tl.where(place == 0, w2, tl.where(place == 1, w1, tl.where(place == 2, w0, 0.0)))
    return of_0, of_1, of_2


@triton.jit
def _add_four(t0, t1, t2, t3, g, x0, b1, b2, b3):
    """The taps' gradients with a token's part."""
    return t0 + g * b3, t1 + g * b2, t2 + g * b1, t3 + g * x0


@triton.jit
def _put_sums(pointer, channels, mask, s0, s1, s2, s3):
    tl.store(pointer, s0, mask=mask)
    tl.store(pointer + channels, s1, mask=mask)
    tl.store(pointer + 2 * channels, s2, mask=mask)
    tl.store(pointer + 3 * channels, s3, mask=mask)


@triton.jit
def _backward(
    x_ptr, weight_ptr, bias_ptr, initial_ptr, place_ptr, g0_ptr, g1_ptr, g2_ptr,
    dx_ptr, sums_ptr, dx_token,
    length, channels, x_batch, x_token, initial_batch,
    blocks_0, blocks_1, start_1, start_2, size_0, size_1, size_2,
    HAS_BIAS: tl.constexpr, HAS_INITIAL: tl.constexpr, PACKED: tl.constexpr, STRIDE_UNIT: tl.constexpr,
    SEGMENT: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """dx of a segment, and its part of the sums over tokens: taps 0 to 3, bias, state 0 to 2."""
    x_batch, x_token = _multiple(x_batch, STRIDE_UNIT), _multiple(x_token, STRIDE_UNIT)
    dx_token = _multiple(dx_token, STRIDE_UNIT)
    row, first = tl.program_id(2).to(tl.int64), tl.program_id(1).to(tl.int64) * SEGMENT
    part, start, size, channel, mask = _part(
        tl.program_id(0), blocks_0, blocks_1, start_1, start_2, size_0, size_1, size_2, CHANNELS
    )
    inside = start + channel
    w0, w1, w2, w3 = _taps(weight_ptr, inside, mask)
    zero = tl.zeros((CHANNELS,), tl.float32)
    bias, i0, i1, i2 = _bias_and_state(
        bias_ptr, initial_ptr, row, initial_batch, inside, mask, HAS_BIAS, HAS_INITIAL, CHANNELS
    )
    x_ptr += row * x_batch
    x3 = _row(x_ptr, first - 3, length, x_token, inside, mask)
    x2 = _row(x_ptr, first - 2, length, x_token, inside, mask)
    x1 = _row(x_ptr, first - 1, length, x_token, inside, mask)
    g_ptr = _of_part(part, g0_ptr, g1_ptr, g2_ptr)
    dw0, dw1, dw2, dw3, dbias, di0, di1, di2 = zero, zero, zero, zero, zero, zero, zero, zero
    a1, a2, a3 = zero, zero, zero  # what tokens so far add to dx of the last three
    for step in range(0, SEGMENT + 4, 4):  # four rows of both are asked for before the first is used
        token = first + step
        n0, n1, n2, n3 = _four_rows(x_ptr, token, length, x_token, inside, mask)
        at, end = row * length + token, (row + 1) * length
        d0, d1, d2, d3 = _four_rows(g_ptr, at, end, size, channel, mask)
        for inner in tl.static_range(4):
            x0, dy = _pick(inner, n0, n1, n2, n3), _pick(inner, d0, d1, d2, d3)
            now = token + inner
            place = _place(place_ptr, row, now, length, PACKED)
            b1, b2, b3 = _window(place, x1, x2, x3, i0, i1, i2)
            before = w3 * x0 + w2 * b1 + w1 * b2 + w0 * b3 + bias
            gate = tl.sigmoid(before)
            g = dy * gate * (1.0 + before * (1.0 - gate))
            dx = a3 + tl.where(place >= 3, w0 * g, 0.0)
            tl.store(
                dx_ptr + (row * length + now - 3) * dx_token + inside,
                dx.to(dx_ptr.dtype.element_ty),
                mask=mask & (now - 3 >= first) & (now - 3 < length) & (now - 3 < first + SEGMENT),
            )
            a3 = a2 + tl.where(place >= 2, w1 * g, 0.0)
            a2 = a1 + tl.where(place >= 1, w2 * g, 0.0)
            a1 = w3 * g
            own = tl.where(now < first + SEGMENT, g, 0.0)
            dw0, dw1, dw2, dw3 = _add_four(dw0, dw1, dw2, dw3, own, x0, b1, b2, b3)
            dbias += own
            if HAS_INITIAL:
                of_0, of_1, of_2 = _state_gradient(own, place, w0, w1, w2)
                di0, di1, di2 = di0 + of_0, di1 + of_1, di2 + of_2
            x3, x2, x1 = x2, x1, x0
    sums_ptr += (row * tl.num_programs(1) + tl.program_id(1)) * 8 * channels + inside
    _put_sums(sums_ptr, channels, mask, dw0, dw1, dw2, dw3)
    _put_sums(sums_ptr + 4 * channels, channels, mask, dbias, di0, di1, di2)


class _CausalConv(torch.autograd.Function):
    """Three parts [B, T, size] and what is not convolved; a part of no channels is an empty tensor."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        initial: Tensor | None,
        places: Tensor | None,
        sizes: tuple[int, int, int],
    ) -> tuple[Tensor, ...]:
        (batch, length, _), channels = x.shape, weight.shape[0]
        parts = tuple(x.new_empty(batch, length, size) for size in sizes)
        grid, arguments, options = _launch(x, initial, bias, places, sizes)
        _forward[grid](x, weight, bias, initial, places, *parts, length, channels, *arguments, **options)
        ctx.save_for_backward(x, weight, bias, initial, places)
        ctx.sizes = sizes
        return *parts, x[..., channels:].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, initial, places = ctx.saved_tensors
        (batch, length, width), channels = x.shape, weight.shape[0]
        grid, arguments, options = _launch(x, initial, bias, places, ctx.sizes)
        dx = x.new_empty(batch, length, width)
        dx[..., channels:] = gradients[-1]
        sums = torch.empty(batch, grid[1], 8, channels, dtype=torch.float32, device=x.device)
        given = [g.contiguous() for g in gradients[:-1]]
        _backward[grid](
            x, weight, bias, initial, places, *given, dx, sums, width, length, channels, *arguments, **options
        )  # fmt: skip
        of_row = sums.sum(1)
        total = of_row.sum(0)
        dinitial = None
        if initial is not None:
            dinitial = of_row[:, 5:].mT if initial.shape[0] == batch else total[5:].T[None]
            dinitial = dinitial.to(initial.dtype)
        dbias = None if bias is None else total[4].to(bias.dtype)
        return dx, total[:4].T.to(weight.dtype), dbias, dinitial, None, None


def _launch(
    x: Tensor, initial: Tensor | None, bias: Tensor | None, places: Tensor | None, sizes: tuple[int, int, int]
) -> tuple[tuple[int, int, int], tuple[int, ...], dict[str, Any]]:
    """Grid, sizes and strides, and options of both kernels."""
    blocks = [triton.cdiv(size, CHANNELS) for size in sizes]
    grid = (sum(blocks), triton.cdiv(x.shape[1], SEGMENT), x.shape[0])
    strides = (x.stride(0), x.stride(1), 0 if initial is None or initial.shape[0] == 1 else initial.stride(0))
    options = {
        "HAS_BIAS": bias is not None,
        "HAS_INITIAL": initial is not None,
        "PACKED": places is not None,
        "STRIDE_UNIT": math.gcd(16, x.stride(0), x.stride(1), x.shape[2]),  # the last is the gradient's stride
        "SEGMENT": SEGMENT,
        "CHANNELS": CHANNELS,
        "num_warps": WARPS,
    }
    return grid, (*strides, *blocks[:2], sizes[0], sizes[0] + sizes[1], *sizes), options


@without_autocast
def causal_conv_triton(inputs: ConvInputs, sizes: Sequence[int] = ()) -> tuple[tuple[Tensor, ...], Tensor]:
    """Returns what `causal_conv_naive` does, its output cut into up to three parts of these sizes (none: one part).

    Channels of x behind those of the weight are a last part. ValueError for another number of taps than four.
    """
    x_BTD, weight_DK, bias_D, initial_state_BDK1, documents_BT, length = inputs
    batch, channels = x_BTD.shape[0], weight_DK.shape[0]
    if weight_DK.shape[1] != TAPS:
        raise ValueError(f"the fused convolution has {TAPS} taps, the weight {weight_DK.shape[1]}: take 'shifted'")
    sizes = tuple(sizes) or (channels,)
    x = x_BTD if x_BTD.stride(-1) == 1 else x_BTD.contiguous()
    initial = initial_state_BDK1
    places = None if documents_BT is None else positions_in_document(documents_BT).int().contiguous()
    contiguous = None if initial is None else initial.contiguous()
    padded = (*sizes, 0, 0)[:3]
    *parts, rest = _CausalConv.apply(x, weight_DK.contiguous(), bias_D, contiguous, places, padded)
    parts = parts[: len(sizes)]
    found = (*parts, rest) if rest.shape[-1] else tuple(parts)
    convolved_BTD = x_BTD[..., :channels]
    if initial is None:
        initial = x.new_zeros(batch, channels, TAPS - 1)
    initial = initial.to(x.dtype).expand(batch, -1, -1)
    if documents_BT is None:
        return found, last_inputs(convolved_BTD, initial, length)
    return found, _last_inputs_in_document(convolved_BTD, initial, documents_BT)


def _last_inputs_in_document(x_BTD: Tensor, initial_BDK1: Tensor, documents_BT: Tensor) -> Tensor:
    """The same for each row's last document, which may be shorter than the state."""
    kept = initial_BDK1.shape[2]
    tokens_B = positions_in_document(documents_BT)[:, -1] + 1
    place = torch.arange(kept, device=x_BTD.device)
    recent = last_inputs(x_BTD, initial_BDK1)
    shifted = (place + tokens_B[:, None]).clamp(max=kept - 1)[:, None].expand_as(initial_BDK1)
    from_document = place >= kept - tokens_B[:, None]
    return torch.where(from_document[:, None], recent, initial_BDK1.gather(2, shifted))
