"""The delta rules and gated linear attention by flash-linear-attention: chunks for sequences, one fused step to decode.

Shapes and semantics are those of `ops.delta_rule` and `ops.gla`. The chunk kernels compute in bf16 with fp32 states.
"""

import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from importlib.util import find_spec, module_from_spec
from typing import Any

from torch import Tensor

from flashslm.ops.bad_sets import known_problems
from flashslm.ops.delta_rule import DeltaRuleInputs, DeltaRuleToken
from flashslm.ops.fused.packing import one_row, pack
from flashslm.ops.gla import GLAInputs
from flashslm.ops.kernel_cache import cache_facts
from flashslm.ops.precision import without_autocast


@cache
def import_fla() -> None:
    """Import fla without its layers and models, half of what its import takes: it leaves out what it does not find.

    Both can be imported by their names afterwards. Where fla does not do without them, the next import takes all of it.
    Of its thirty families of operators those are imported that are asked for.
    """
    modules: dict[str, Any] = sys.modules
    hidden = [name for name in ("fla.layers", "fla.models") if name not in modules]
    modules |= dict.fromkeys(hidden)  # as if they were not installed
    try:
        with suppress(ModuleNotFoundError):
            import fla

            if "fla.ops" not in modules:
                fla.ops = modules["fla.ops"] = _package_without_its_imports("fla.ops")
    finally:
        for name in hidden:
            del modules[name]


def _package_without_its_imports(name: str) -> Any:
    """A package of which modules can be imported; its own file, which imports all of them, runs when it is asked for a
    name.
    """
    spec: Any = find_spec(name)
    package: Any = module_from_spec(spec)

    def whole(attribute: str) -> Any:
        if attribute.startswith("__") and attribute != "__all__":  # pickle looks through every module for some of them
            raise AttributeError(f"module '{name}' has no attribute '{attribute}'")
        del package.__getattr__
        spec.loader.exec_module(package)
        return getattr(package, attribute)

    package.__getattr__ = whole
    return package


@without_autocast
def delta_rule_fla(inputs: DeltaRuleInputs, normalise: bool = False) -> tuple[Tensor, Tensor]:
    """Returns what `delta_rule_naive` does, to bf16's accuracy. With a decay it is the gated delta rule.

    With `normalise` the kernels give q and k unit length, and q the scale 1/sqrt(K).
    """
    import_fla()
    from fla.ops.delta_rule import chunk_delta_rule
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    q_BTHK, k_BTHK, v_BTHV, beta_BTH, initial_state_BHKV, documents_BT, log_decay_BTH = inputs
    dtype = v_BTHV.dtype
    tensors = {"q": q_BTHK.to(dtype), "k": k_BTHK.to(dtype), "v": v_BTHV, "beta": beta_BTH.to(dtype)}
    options = {"use_qk_l2norm_in_kernel": normalise, "scale": q_BTHK.shape[-1] ** -0.5 if normalise else 1.0}
    if log_decay_BTH is None:
        return _by_documents(partial(chunk_delta_rule, **options), tensors, initial_state_BHKV, documents_BT)
    tensors["g"] = log_decay_BTH.float()
    return _by_documents(partial(chunk_gated_delta_rule, **options), tensors, initial_state_BHKV, documents_BT)


def delta_rule_step_fla(token: DeltaRuleToken) -> Tensor:
    """Advance one token by the recurrent kernel. Returns o [B, H, V]."""
    import_fla()
    from fla.ops.delta_rule import fused_recurrent_delta_rule
    from fla.ops.gated_delta_rule import fused_recurrent_gated_delta_rule

    q_BHK, k_BHK, v_BHV, beta_BH, state_BHKV, log_decay_BH = token
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
def gla_fla(inputs: GLAInputs) -> tuple[Tensor, Tensor]:
    """Returns what `gla_naive` does, to bf16's accuracy."""
    import_fla()
    from fla.ops.gla import chunk_gla

    q_BTHK, k_BTHK, v_BTHV, log_decay_BTHK, initial_state_BHKV, documents_BT = inputs
    dtype = v_BTHV.dtype
    tensors = {"q": q_BTHK.to(dtype), "k": k_BTHK.to(dtype), "v": v_BTHV, "g": log_decay_BTHK.float()}
    return _by_documents(partial(chunk_gla, scale=1.0), tensors, initial_state_BHKV, documents_BT)


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

    The library refuses to run its backward there, too.
    """
    return known_problems(["gated_delta_rule"], cache_facts()).get("gated_delta_rule", "")
