"""The operations as the layers call them: each runs in the backend that `ops.kernels` has chosen for its tensors.

Shapes and semantics are those of the naive backends.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from flashslm.ops.attention import AttentionInputs, attention_sdpa
from flashslm.ops.causal_conv import ConvInputs, causal_conv_shifted
from flashslm.ops.delta_rule import DeltaRuleInputs, DeltaRuleToken, delta_rule_chunked, normalise_heads
from flashslm.ops.delta_rule import delta_rule_step as delta_rule_step_torch
from flashslm.ops.gates import gated_norm_naive, swiglu_naive
from flashslm.ops.gla import GLAInputs, gla_chunked
from flashslm.ops.kernels import MissingKernel, backend_of
from flashslm.ops.rotary import HeadsInputs, attention_heads_naive
from flashslm.ops.ssd import RawScan, SSDInputs, SSDToken, ssd_chunked
from flashslm.ops.ssd import ssd_step as ssd_step_torch
from flashslm.ops.token_scores import HeadInputs, TokenScores, token_scores_chunked


def delta_rule(inputs: DeltaRuleInputs, normalise: bool = False) -> tuple[Tensor, Tensor]:
    """The delta rule; with a decay, the gated one. With `normalise` q and k are still to go through normalise_heads."""
    gated = inputs.log_decay_BTH is not None
    operation = "gated_delta_rule" if gated else "delta_rule"
    if backend_of(operation, inputs.v_BTHV) != "fla":
        if normalise:
            q, k = normalise_heads(inputs.q_BTHK, inputs.k_BTHK)
            inputs = inputs._replace(q_BTHK=q, k_BTHK=k)
        return delta_rule_chunked(inputs)
    from flashslm.ops.fused.linear_attention import delta_rule_fla, gated_backward_problem

    trained = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    if gated and trained and (problem := gated_backward_problem()):
        raise MissingKernel(f"kernels.gated_delta_rule: backend 'fla' cannot train here: {problem}; set it to chunked")
    return delta_rule_fla(inputs, normalise)


def delta_rule_step(token: DeltaRuleToken) -> Tensor:
    """One token of it; the state is updated in place."""
    operation = "delta_rule" if token.log_decay_BH is None else "gated_delta_rule"
    if backend_of(operation, token.v_BHV) != "fla":
        return delta_rule_step_torch(token)
    from flashslm.ops.fused.linear_attention import delta_rule_step_fla

    return delta_rule_step_fla(token)


def gla(inputs: GLAInputs) -> tuple[Tensor, Tensor]:
    """Gated linear attention."""
    if backend_of("gla", inputs.v_BTHV) != "fla":
        return gla_chunked(inputs)
    from flashslm.ops.fused.linear_attention import gla_fla

    return gla_fla(inputs)


def ssd(inputs: SSDInputs, raw: RawScan | None = None) -> tuple[Tensor, Tensor]:
    """Mamba-2's state-space duality; with `raw` dt is what comes before its bias and softplus, and D x is added."""
    if backend_of("ssd", inputs.x_BTHP) == "mamba-ssm":
        from flashslm.ops.fused.ssd import ssd_mamba

        return ssd_mamba(inputs, raw)
    if raw is None:
        return ssd_chunked(inputs)
    y, state = ssd_chunked(inputs._replace(dt_BTH=raw.step_size(inputs.dt_BTH)))
    return raw.add_skip(y, inputs.x_BTHP), state


def ssd_step(token: SSDToken) -> Tensor:
    """One token of it; the state is updated in place."""
    if backend_of("ssd", token.x_BHP) != "mamba-ssm":
        return ssd_step_torch(token)
    from flashslm.ops.fused.ssd import ssd_step_mamba

    return ssd_step_mamba(token)


def causal_conv(inputs: ConvInputs, sizes: Sequence[int]) -> tuple[tuple[Tensor, ...], Tensor]:
    """Short causal convolution with SiLU; the output is cut into up to three parts of these sizes.

    Channels of x behind those of the weight are not convolved: they come as a last part. A joined projection's gradient
    is then written as a whole.
    """
    if backend_of("causal_conv", inputs.x_BTD) == "triton":
        from flashslm.ops.fused.causal_conv import causal_conv_triton

        return causal_conv_triton(inputs, sizes)
    x_BTD, rest_BTR = inputs.x_BTD.tensor_split([inputs.weight_DK.shape[0]], dim=-1)
    y, state = causal_conv_shifted(inputs._replace(x_BTD=x_BTD))
    parts = torch.split(y, list(sizes), dim=-1)
    return (*parts, rest_BTR) if rest_BTR.shape[-1] else parts, state


def attention_heads(inputs: HeadsInputs) -> tuple[Tensor, Tensor, Tensor]:
    """Attention's q, k and v from the joined projections: q and k normalised, if they are to be, and rotated."""
    if backend_of("rotary", inputs.qkv_BTC) != "triton":
        return attention_heads_naive(inputs)
    from flashslm.ops.fused.rotary import attention_heads_triton

    return attention_heads_triton(inputs)


def token_scores(inputs: HeadInputs) -> TokenScores:
    """How likely a head finds tokens: `kernels.cross_entropy` chooses the backend, with two exceptions.

    In fp32 it is always torch's: the fused kernel computes fp32 products exactly, which was never measured beside it.
    So it is on GPUs whose blocks cannot have the kernel's shared memory, such as an L4 or an RTX 4090.
    """
    hidden_ND = inputs.hidden_ND
    half_precision = hidden_ND.dtype in (torch.bfloat16, torch.float16)
    if not half_precision or backend_of("cross_entropy", hidden_ND) != "triton":
        return token_scores_chunked(inputs)
    from flashslm.ops.fused.token_scores import SHARED_BYTES, token_scores_triton

    block_bytes = getattr(torch.cuda.get_device_properties(hidden_ND.device), "shared_memory_per_block_optin", 0)
    backend = token_scores_triton if block_bytes >= SHARED_BYTES else token_scores_chunked
    return backend(inputs)


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) · up of [..., 2F]."""
    if not _fused_without_gradients(gate_up):
        return swiglu_naive(gate_up)
    from flashslm.ops.fused.gates import swiglu_triton

    return swiglu_triton(gate_up)


def gated_norm(y: Tensor, z: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm(y · silu(z)) over the last dimension."""
    if not _fused_without_gradients(z):
        return gated_norm_naive(y, z, weight, eps)
    from flashslm.ops.fused.gates import gated_norm_triton

    return gated_norm_triton(y, z, weight, eps)


def _fused_without_gradients(x: Tensor) -> bool:
    """Whether a kernel of our own runs; with gradients the compiler makes these kernels (`models.compilation`)."""
    return x.is_cuda and not torch.is_grad_enabled() and backend_of("elementwise", x) == "inductor"


def attention(inputs: AttentionInputs) -> Tensor:
    """Causal grouped-query attention, over a window if one is given."""
    if backend_of("attention", inputs.q_BTHK) != "flash":
        return attention_sdpa(inputs)
    from flashslm.ops.fused.attention import attention_flash

    return attention_flash(inputs)
