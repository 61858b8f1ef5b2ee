"""What the projections of few and of many inputs share: normalisation before them, the convolution after them."""

import triton
import triton.language as tl


@triton.jit
def normalised(x, norm, size, eps, PADDED: tl.constexpr, HEAD: tl.constexpr):
    """RMS norm of [PADDED] fp32 values times `norm`, over all of them or over each HEAD; zeros beyond `size`."""
    if HEAD:
        heads = tl.reshape(x, (PADDED // HEAD, HEAD))
        scale = tl.rsqrt(tl.sum(heads * heads, axis=1) / HEAD + eps)
        return tl.reshape(heads * scale[:, None], (PADDED,)) * norm
    return x * norm * tl.rsqrt(tl.sum(x * x, axis=0) / size + eps)


@triton.jit
def taps(weight_ptr, bias_ptr, channel, here, BIAS: tl.constexpr):
    """The four taps of each channel, oldest input first, and its bias."""
    tap = weight_ptr + channel * 4
    bias = tl.zeros_like(channel).to(tl.float32)
    if BIAS:
        bias = tl.load(bias_ptr + channel, mask=here, other=0.0)
    return (
        tl.load(tap, mask=here, other=0.0),
        tl.load(tap + 1, mask=here, other=0.0),
        tl.load(tap + 2, mask=here, other=0.0),
        tl.load(tap + 3, mask=here, other=0.0),
        bias,
    )


@triton.jit
def history(state_ptr, b, channels, channel, here):
    """The last three inputs of each channel, oldest first."""
    state = state_ptr + (b * channels + channel) * 3
    return (
        tl.load(state, mask=here, other=0.0),
        tl.load(state + 1, mask=here, other=0.0),
        tl.load(state + 2, mask=here, other=0.0),
    )


@triton.jit
def convolved(y, taps, history, state_ptr, b, channels, channel, here):
    """Where `here`, y convolved and activated; the history moves on by one."""
    first, second, third = history
    w0, w1, w2, w3, bias = taps
    new = y.to(state_ptr.dtype.element_ty)
    mixed = first.to(tl.float32) * w0 + second.to(tl.float32) * w1 + third.to(tl.float32) * w2
    mixed += new.to(tl.float32) * w3 + bias
    state = state_ptr + (b * channels + channel) * 3
    tl.store(state, second, mask=here)
    tl.store(state + 1, third, mask=here)
    tl.store(state + 2, new, mask=here)
    return tl.where(here, mixed * tl.sigmoid(mixed), y)
