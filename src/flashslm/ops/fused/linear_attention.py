"""The delta rules and gated linear attention by flash-linear-attention: chunks for sequences, one fused step to decode.

Shapes and semantics are those of `ops.delta_rule` and `ops.gla`. The chunk kernels compute in bf16 with fp32 states.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from flashslm.ops.fused.packing import one_row, pack
from flashslm.ops.precision import without_autocast


@without_autocast
def delta_rule_fla(
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
    """Returns what `delta_rule_naive` does, to bf16's accuracy. With a decay it is the gated delta rule.

    With `normalise` the kernels give q and k unit length, and q the scale 1/sqrt(K).
    """
    from fla.ops.delta_rule import chunk_delta_rule
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    dtype = v_BTHV.dtype
    inputs = {"q": q_BTHK.to(dtype), "k": k_BTHK.to(dtype), "v": v_BTHV, "beta": beta_BTH.to(dtype)}
    options = {"use_qk_l2norm_in_kernel": normalise, "scale": q_BTHK.shape[-1] ** -0.5 if normalise else 1.0}
    if log_decay_BTH is None:
        return _by_documents(partial(chunk_delta_rule, **options), inputs, initial_state_BHKV, documents_BT)
    inputs["g"] = log_decay_BTH.float()
    return _by_documents(partial(chunk_gated_delta_rule, **options), inputs, initial_state_BHKV, documents_BT)


def delta_rule_step_fla(
    q_BHK: Tensor, k_BHK: Tensor, v_BHV: Tensor, beta_BH: Tensor, state_BHKV: Tensor, log_decay_BH: Tensor | None = None
) -> Tensor:
    """Advance one token by the recurrent kernel; the state is updated in place. Returns o [B, H, V]."""
    from fla.ops.delta_rule import fused_recurrent_delta_rule
    from fla.ops.gated_delta_rule import fused_recurrent_gated_delta_rule

    q, k, v, beta = (x[:, None].contiguous() for x in (q_BHK.to(v_BHV.dtype), k_BHK.to(v_BHV.dtype), v_BHV, beta_BH))
    more = {"initial_state": state_BHKV, "output_final_state": True, "scale": 1.0}
    if log_decay_BH is None:
        o, state = fused_recurrent_delta_rule(q, k, v, beta, **more)
    else:
        o, state = fused_recurrent_gated_delta_rule(q, k, v, g=log_decay_BH[:, None].float(), beta=beta, **more)
    state_BHKV.copy_(state)
    output: Tensor = o[:, 0]
    return output


@without_autocast
def gla_fla(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    log_decay_BTHK: Tensor,
    initial_state_BHKV: Tensor | None = None,
    documents_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns what `gla_naive` does, to bf16's accuracy."""
    from fla.ops.gla import chunk_gla

    dtype = v_BTHV.dtype
    inputs = {"q": q_BTHK.to(dtype), "k": k_BTHK.to(dtype), "v": v_BTHV, "g": log_decay_BTHK.float()}
    return _by_documents(partial(chunk_gla, scale=1.0), inputs, initial_state_BHKV, documents_BT)


def _by_documents(
    kernel: Callable[..., Any], inputs: dict[str, Tensor], initial: Tensor | None, documents_BT: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Run a chunk kernel; packed documents become one row with a state each, all from their row's initial state."""
    initial = None if initial is None else initial.float()
    if documents_BT is None:
        contiguous = {name: x.contiguous() for name, x in inputs.items()}
        state_of = None if initial is None else initial.contiguous()
        output, state = kernel(**contiguous, initial_state=state_of, output_final_state=True)
        return output, state
    packing = pack(documents_BT)
    output, states = kernel(
        **{name: one_row(x).contiguous() for name, x in inputs.items()},
        initial_state=None if initial is None else initial.index_select(0, packing.row_N),
        output_final_state=True,
        cu_seqlens=packing.offsets_N1,
    )
    return output.view_as(inputs["v"]), states.index_select(0, packing.last_B)


def gated_backward_problem() -> str:
    """Why the gated delta rule cannot be trained on this machine by flash-linear-attention; empty: it can.

    Its backward gives wrong results on Hopper with Triton 3.4 to 3.7.0, and the library refuses to run it.
    """
    import importlib.util

    import triton

    version = tuple(int(part) for part in triton.__version__.split("+")[0].split(".")[:3])
    hopper = torch.cuda.get_device_capability()[0] == 9
    if hopper and (3, 4) <= version < (3, 7, 1) and importlib.util.find_spec("tilelang") is None:
        return f"Triton {triton.__version__} computes a wrong backward on Hopper (3.4 to 3.7.0 do)"
    return ""
