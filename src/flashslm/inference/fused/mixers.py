"""One token through the recurrent mixers: read the state, update it, read it out. States are loaded before the wait.

A state is written by the same kernel of the step before, which has ended when this step begins.
"""

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def _delta(inputs_ptr, state_ptr, out_ptr, heads, eps, HEAD: tl.constexpr, VALUES: tl.constexpr):
    b, h = tl.program_id(0) // heads, tl.program_id(0) % heads
    key = tl.arange(0, HEAD)
    value = tl.program_id(1) * VALUES + tl.arange(0, VALUES)
    place = state_ptr + (tl.program_id(0).to(tl.int64) * HEAD + key[:, None]) * HEAD + value[None, :]
    state = tl.load(place)
    gdc_launch_dependents()
    gdc_wait()
    size = heads * HEAD
    row = inputs_ptr + b * (3 * size + heads)
    q = tl.load(row + h * HEAD + key).to(tl.float32)
    k = tl.load(row + size + h * HEAD + key).to(tl.float32)
    v = tl.load(row + 2 * size + h * HEAD + value).to(tl.float32)
    beta = tl.sigmoid(tl.load(row + 3 * size + h).to(tl.float32))
    q = q * tl.rsqrt(tl.sum(q * q, axis=0) + eps) / tl.sqrt_rn(HEAD * 1.0)
    k = k * tl.rsqrt(tl.sum(k * k, axis=0) + eps)
    error = v - tl.sum(state * k[:, None], axis=0)
    state += k[:, None] * (beta * error)[None, :]
    tl.store(place, state)
    tl.store(out_ptr + b * size + h * HEAD + value, tl.sum(state * q[:, None], axis=0))


def delta_rule_decode(inputs_BR: Tensor, state_BHKV: Tensor, out_BD: Tensor, eps: float) -> None:
    """The delta rule on [q | k | v | beta] (convolved, neither normalised nor scaled; beta before its sigmoid).

    `eps` is added to the squared length of q and k. The output is not normalised.
    """
    batch, heads, head, _ = state_BHKV.shape
    values = min(head, 32)
    grid = (batch * heads, head // values)
    _delta[grid](inputs_BR, state_BHKV, out_BD, heads, eps, HEAD=head, VALUES=values, num_warps=4, launch_pdl=True)


@triton.jit
def _ssd(
    inputs_ptr,
    dt_bias_ptr,
    a_log_ptr,
    skip_ptr,
    state_ptr,
    out_ptr,
    heads,
    HEAD: tl.constexpr,
    STATE: tl.constexpr,
    VALUES: tl.constexpr,
):
    b, h = tl.program_id(0) // heads, tl.program_id(0) % heads
    value, n = tl.program_id(1) * VALUES + tl.arange(0, VALUES), tl.arange(0, STATE)
    place = state_ptr + (tl.program_id(0).to(tl.int64) * HEAD + value[:, None]) * STATE + n[None, :]
    state = tl.load(place)
    dt_bias, a, skip = tl.load(dt_bias_ptr + h), -tl.exp(tl.load(a_log_ptr + h)), tl.load(skip_ptr + h)
    gdc_launch_dependents()
    gdc_wait()
    inner = heads * HEAD
    row = inputs_ptr + b * (2 * inner + 2 * STATE + heads)
    z = tl.load(row + h * HEAD + value).to(tl.float32)
    x = tl.load(row + inner + h * HEAD + value).to(tl.float32)
    keys = tl.load(row + 2 * inner + n).to(tl.float32)
    queries = tl.load(row + 2 * inner + STATE + n).to(tl.float32)
    dt = tl.load(row + 2 * inner + 2 * STATE + h).to(tl.float32) + dt_bias
    dt = tl.where(dt > 20.0, dt, tl.log(1.0 + tl.exp(dt)))
    state = state * tl.exp(dt * a) + (dt * x)[:, None] * keys[None, :]
    tl.store(place, state)
    y = tl.sum(state * queries[None, :], axis=1) + skip * x
    tl.store(out_ptr + b * inner + h * HEAD + value, y * z * tl.sigmoid(z))


def ssd_decode(
    inputs_BR: Tensor, dt_bias_H: Tensor, a_log_H: Tensor, skip_H: Tensor, state_BHPN: Tensor, out_BD: Tensor
) -> None:
    """Mamba-2 on [z | x | B | C | dt] (x, B, C convolved): (S C + D x) · silu(z), not normalised. Vectors are fp32."""
    batch, heads, head, state = state_BHPN.shape
    values = min(head, 32)
    _ssd[(batch * heads, head // values)](
        inputs_BR,
        dt_bias_H,
        a_log_H,
        skip_H,
        state_BHPN,
        out_BD,
        heads,
        HEAD=head,
        STATE=state,
        VALUES=values,
        num_warps=4,
        launch_pdl=True,
    )
