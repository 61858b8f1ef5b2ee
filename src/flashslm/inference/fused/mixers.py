"""One token through the recurrent mixers: convolve, read the state, update it, read it out.

Of many sequences the projection has convolved its rows; of few, every program convolves what it reads. What earlier
steps wrote (states, earlier inputs of the convolution) is loaded before the wait for the projection.
"""

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from flashslm.inference.fused.projection import Ring

BLOCK_V = 32  # value channels of a head that a program takes


@triton.jit
def _earlier(ring_ptr, weight_ptr, bias_ptr, length, channel, channels, BIAS: tl.constexpr):
    """The convolution's sum over the three earlier inputs of some channels, with its bias."""
    total = tl.load(bias_ptr + channel).to(tl.float32) if BIAS else tl.zeros_like(channel).to(tl.float32)
    for tap in tl.static_range(3):
        place = (length + 1 + tap) % 4
        total += tl.load(ring_ptr + place * channels + channel).to(tl.float32) * tl.load(weight_ptr + channel * 4 + tap)
    return total


@triton.jit
def _convolved(earlier, last_tap, ring_ptr, length, channel, channels):
    """Add the present input and activate; rounded as a layer's activations are."""
    new = tl.load(ring_ptr + length % 4 * channels + channel)
    mixed = earlier + new.to(tl.float32) * last_tap
    return (mixed * tl.sigmoid(mixed)).to(new.dtype).to(tl.float32)


@triton.jit
def _delta(
    inputs_ptr,
    ring_ptr,
    weight_ptr,
    lengths_ptr,
    state_ptr,
    out_ptr,
    heads,
    eps,
    HEAD_DIM: tl.constexpr,
    VALUES: tl.constexpr,
    CONVOLVED: tl.constexpr,
):
    b, h = tl.program_id(0) // heads, tl.program_id(0) % heads
    key = tl.arange(0, HEAD_DIM)
    value = tl.program_id(1) * VALUES + tl.arange(0, VALUES)
    size = heads * HEAD_DIM
    length = tl.load(lengths_ptr + b).to(tl.int32)
    place = state_ptr + (tl.program_id(0).to(tl.int64) * HEAD_DIM + key[:, None]) * HEAD_DIM + value[None, :]
    state = tl.load(place)
    ring = ring_ptr + b * 12 * size
    at_q, at_k, at_v = h * HEAD_DIM + key, size + h * HEAD_DIM + key, 2 * size + h * HEAD_DIM + value
    row = inputs_ptr + b * (3 * size + heads)
    if CONVOLVED:
        gdc_launch_dependents()
        gdc_wait()
        q, k = tl.load(row + at_q).to(tl.float32), tl.load(row + at_k).to(tl.float32)
        v = tl.load(row + at_v).to(tl.float32)
    else:
        q = _earlier(ring, weight_ptr, weight_ptr, length, at_q, 3 * size, False)
        k = _earlier(ring, weight_ptr, weight_ptr, length, at_k, 3 * size, False)
        v = _earlier(ring, weight_ptr, weight_ptr, length, at_v, 3 * size, False)
        tap_q, tap_k = tl.load(weight_ptr + at_q * 4 + 3), tl.load(weight_ptr + at_k * 4 + 3)
        tap_v = tl.load(weight_ptr + at_v * 4 + 3)
        gdc_launch_dependents()
        gdc_wait()
        q = _convolved(q, tap_q, ring, length, at_q, 3 * size)
        k = _convolved(k, tap_k, ring, length, at_k, 3 * size)
        v = _convolved(v, tap_v, ring, length, at_v, 3 * size)
    beta = tl.sigmoid(tl.load(row + 3 * size + h).to(tl.float32))
    q = q * tl.rsqrt(tl.sum(q * q, axis=0) + eps) / tl.sqrt_rn(HEAD_DIM * 1.0)
    k = k * tl.rsqrt(tl.sum(k * k, axis=0) + eps)
    error = v - tl.sum(state * k[:, None], axis=0)
    state += k[:, None] * (beta * error)[None, :]
    tl.store(place, state)
    tl.store(out_ptr + b * size + h * HEAD_DIM + value, tl.sum(state * q[:, None], axis=0))


def delta_rule_decode(
    inputs_BR: Tensor, ring: Ring, state_BHKV: Tensor, out_BD: Tensor, eps: float, *, convolved: bool
) -> None:
    """The delta rule on [q | k | v] of the ring, and beta (before its sigmoid), the last columns of `inputs`.

    `convolved`: `inputs` has q, k and v as the convolution leaves them. `eps` is added to the squared lengths of q and
    k. The output is not normalised.
    """
    batch, heads, head, _ = state_BHKV.shape
    values = min(head, BLOCK_V)
    _delta[(batch * heads, head // values)](
        inputs_BR,
        ring.inputs,
        ring.taps_CK,
        ring.lengths_B,
        state_BHKV,
        out_BD,
        heads,
        eps,
        HEAD_DIM=head,
        VALUES=values,
        CONVOLVED=convolved,
        num_warps=4,
        launch_pdl=True,
    )


@triton.jit
def _ssd(
    inputs_ptr,
    ring_ptr,
    weight_ptr,
    bias_ptr,
    lengths_ptr,
    dt_bias_ptr,
    a_log_ptr,
    skip_ptr,
    state_ptr,
    out_ptr,
    heads,
    HEAD_DIM: tl.constexpr,
    STATE: tl.constexpr,
    VALUES: tl.constexpr,
    CONVOLVED: tl.constexpr,
):
    b, h = tl.program_id(0) // heads, tl.program_id(0) % heads
    value, n = tl.program_id(1) * VALUES + tl.arange(0, VALUES), tl.arange(0, STATE)
    inner = heads * HEAD_DIM
    channels = inner + 2 * STATE
    length = tl.load(lengths_ptr + b).to(tl.int32)
    place = state_ptr + (tl.program_id(0).to(tl.int64) * HEAD_DIM + value[:, None]) * STATE + n[None, :]
    state = tl.load(place)
    dt_bias, a, skip = tl.load(dt_bias_ptr + h), -tl.exp(tl.load(a_log_ptr + h)), tl.load(skip_ptr + h)
    ring = ring_ptr + b * 4 * channels
    at_x, at_b, at_c = h * HEAD_DIM + value, inner + n, inner + STATE + n
    row = inputs_ptr + b * (inner + channels + heads)
    if CONVOLVED:
        gdc_launch_dependents()
        gdc_wait()
        x, keys = tl.load(row + inner + at_x).to(tl.float32), tl.load(row + inner + at_b).to(tl.float32)
        queries = tl.load(row + inner + at_c).to(tl.float32)
    else:
        x = _earlier(ring, weight_ptr, bias_ptr, length, at_x, channels, True)
        keys = _earlier(ring, weight_ptr, bias_ptr, length, at_b, channels, True)
        queries = _earlier(ring, weight_ptr, bias_ptr, length, at_c, channels, True)
        tap_x, tap_b = tl.load(weight_ptr + at_x * 4 + 3), tl.load(weight_ptr + at_b * 4 + 3)
        tap_c = tl.load(weight_ptr + at_c * 4 + 3)
        gdc_launch_dependents()
        gdc_wait()
        x = _convolved(x, tap_x, ring, length, at_x, channels)
        keys = _convolved(keys, tap_b, ring, length, at_b, channels)
        queries = _convolved(queries, tap_c, ring, length, at_c, channels)
    z = tl.load(row + h * HEAD_DIM + value).to(tl.float32)
    dt = tl.load(row + inner + channels + h).to(tl.float32) + dt_bias
    # softplus; for small exponentials the first terms of log(1 + e), where 1 + e has lost its digits
    e = tl.exp(dt)
    dt = tl.where(dt > 20.0, dt, tl.where(dt < -4.0, e * (1.0 - e * (0.5 - e / 3.0)), tl.log(1.0 + e)))
    state = state * tl.exp(dt * a) + (dt * x)[:, None] * keys[None, :]
    tl.store(place, state)
    y = tl.sum(state * queries[None, :], axis=1) + skip * x
    tl.store(out_ptr + b * inner + h * HEAD_DIM + value, y * z * tl.sigmoid(z))


def ssd_decode(
    inputs_BR: Tensor,
    ring: Ring,
    vectors_H: tuple[Tensor, Tensor, Tensor],
    state_BHPN: Tensor,
    out_BD: Tensor,
    *,
    convolved: bool,
) -> None:
    """Mamba-2 on z and dt (the first and last columns of `inputs`) and [x | B | C] of the ring, whose bias is given.

    Writes (S C + D x) · silu(z), not normalised. `vectors`: dt_bias, A_log, D, fp32. `convolved`: `inputs` has x, B and
    C as the convolution leaves them.
    """
    batch, heads, head, state = state_BHPN.shape
    values = min(head, BLOCK_V)
    _ssd[(batch * heads, head // values)](
        inputs_BR,
        ring.inputs,
        ring.taps_CK,
        ring.bias_C,
        ring.lengths_B,
        *vectors_H,
        state_BHPN,
        out_BD,
        heads,
        HEAD_DIM=head,
        STATE=state,
        VALUES=values,
        CONVOLVED=convolved,
        num_warps=4,
        launch_pdl=True,
    )
