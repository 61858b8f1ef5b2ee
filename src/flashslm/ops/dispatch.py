"""The operations as the layers call them: each runs in the backend that `ops.kernels` has chosen for its tensors.

Shapes and semantics are those of the naive backends.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from flashslm.ops.attention import attention_sdpa
from flashslm.ops.causal_conv import causal_conv as causal_conv_shifted
from flashslm.ops.delta_rule import delta_rule_chunked, normalise_heads
from flashslm.ops.delta_rule import delta_rule_step as delta_rule_step_torch
from flashslm.ops.gla import gla_chunked
from flashslm.ops.kernels import MissingKernel, backend_of
from flashslm.ops.rotary import HeadNorm, attention_heads_naive
from flashslm.ops.ssd import RawScan, ssd_chunked
from flashslm.ops.ssd import ssd_step as ssd_step_torch


def delta_rule(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    beta_BTH: Tensor,
    initial_state_BHKV: Tensor | None = None,
    documents_BT: Tensor | None = None,
    log_decay_BTH: Tensor | None = None,
    *,
    normalise: bool = False,
) -> tuple[Tensor, Tensor]:
    """The delta rule; with a decay, the gated one. With `normalise` q and k are still to go through normalise_heads."""
    gated = log_decay_BTH is not None
    operation = "gated_delta_rule" if gated else "delta_rule"
    if backend_of(operation, v_BTHV) != "fla":
        q, k = normalise_heads(q_BTHK, k_BTHK) if normalise else (q_BTHK, k_BTHK)
        return delta_rule_chunked(q, k, v_BTHV, beta_BTH, initial_state_BHKV, documents_BT, log_decay_BTH)
    inputs = (q_BTHK, k_BTHK, v_BTHV, beta_BTH, initial_state_BHKV, documents_BT)
    from flashslm.ops.fused.linear_attention import delta_rule_fla, gated_backward_problem

    trained = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (*inputs, log_decay_BTH))
    if gated and trained and (problem := gated_backward_problem()):
        raise MissingKernel(f"kernels.gated_delta_rule: backend 'fla' cannot train here: {problem}; set it to chunked")
    return delta_rule_fla(*inputs, log_decay_BTH, normalise=normalise)


def delta_rule_step(
    q_BHK: Tensor, k_BHK: Tensor, v_BHV: Tensor, beta_BH: Tensor, state_BHKV: Tensor, log_decay_BH: Tensor | None = None
) -> Tensor:
    """One token of it; the state is updated in place."""
    operation = "delta_rule" if log_decay_BH is None else "gated_delta_rule"
    if backend_of(operation, v_BHV) != "fla":
        return delta_rule_step_torch(q_BHK, k_BHK, v_BHV, beta_BH, state_BHKV, log_decay_BH=log_decay_BH)
    from flashslm.ops.fused.linear_attention import delta_rule_step_fla

    return delta_rule_step_fla(q_BHK, k_BHK, v_BHV, beta_BH, state_BHKV, log_decay_BH)


def gla(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    log_decay_BTHK: Tensor,
    initial_state_BHKV: Tensor | None = None,
    documents_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Gated linear attention."""
    inputs = (q_BTHK, k_BTHK, v_BTHV, log_decay_BTHK, initial_state_BHKV, documents_BT)
    if backend_of("gla", v_BTHV) != "fla":
        return gla_chunked(*inputs)
    from flashslm.ops.fused.linear_attention import gla_fla

    return gla_fla(*inputs)


def ssd(
    x_BTHP: Tensor,
    dt_BTH: Tensor,
    a_H: Tensor,
    b_BTN: Tensor,
    c_BTN: Tensor,
    initial_state_BHPN: Tensor | None = None,
    documents_BT: Tensor | None = None,
    raw: RawScan | None = None,
) -> tuple[Tensor, Tensor]:
    """Mamba-2's state-space duality; with `raw` dt is what comes before its bias and softplus, and D x is added."""
    inputs = (x_BTHP, dt_BTH, a_H, b_BTN, c_BTN, initial_state_BHPN, documents_BT)
    if backend_of("ssd", x_BTHP) == "mamba-ssm":
        from flashslm.ops.fused.ssd import ssd_mamba

        return ssd_mamba(*inputs, raw)
    if raw is None:
        return ssd_chunked(*inputs)
    y, state = ssd_chunked(x_BTHP, raw.step_size(dt_BTH), *inputs[2:])
    return raw.add_skip(y, x_BTHP), state


def ssd_step(x_BHP: Tensor, dt_BH: Tensor, a_H: Tensor, b_BN: Tensor, c_BN: Tensor, state_BHPN: Tensor) -> Tensor:
    """One token of it; the state is updated in place."""
    if backend_of("ssd", x_BHP) != "mamba-ssm":
        return ssd_step_torch(x_BHP, dt_BH, a_H, b_BN, c_BN, state_BHPN)
    from flashslm.ops.fused.ssd import ssd_step_mamba

    return ssd_step_mamba(x_BHP, dt_BH, a_H, b_BN, c_BN, state_BHPN)


def causal_conv(
    x_BTD: Tensor,
    weight_DK: Tensor,
    bias_D: Tensor | None,
    initial_state_BDK1: Tensor | None,
    documents_BT: Tensor | None,
    sizes: Sequence[int],
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Short causal convolution with SiLU; the output is cut into up to three parts of these sizes."""
    inputs = (x_BTD, weight_DK, bias_D, initial_state_BDK1, documents_BT)
    if backend_of("causal_conv", x_BTD) == "triton":
        from flashslm.ops.fused.causal_conv import causal_conv_triton

        return causal_conv_triton(*inputs, sizes)
    y, state = causal_conv_shifted(*inputs)
    return torch.split(y, list(sizes), dim=-1), state


def attention_heads(
    qkv_BTC: Tensor, cos: Tensor, sin: Tensor, heads: tuple[int, int], norm: HeadNorm | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention's q, k and v from the joined projections: q and k normalised, if they are to be, and rotated."""
    if backend_of("rotary", qkv_BTC) != "triton":
        return attention_heads_naive(qkv_BTC, cos, sin, heads, norm)
    from flashslm.ops.fused.rotary import attention_heads_triton

    return attention_heads_triton(qkv_BTC, cos, sin, heads, norm)


def attention(
    q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, documents_BT: Tensor | None = None, window: int | None = None
) -> Tensor:
    """Causal grouped-query attention, over a window if one is given."""
    if backend_of("attention", q_BTHK) != "flash":
        return attention_sdpa(q_BTHK, k_BSGK, v_BSGK, documents_BT, window=window)
    from flashslm.ops.fused.attention import attention_flash

    return attention_flash(q_BTHK, k_BSGK, v_BSGK, documents_BT, window)
