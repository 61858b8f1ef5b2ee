"""Where each exported tensor goes among the parameters of the vLLM model. No torch and no vLLM here.

At tensor parallel size 1 a merged parameter is its parts one below the other, so a part is placed by its first row.
"""

from typing import NamedTuple

from flashslm.export.names import EMBEDDING, MEMORY_TOKENS, exported_shapes
from flashslm.models.architecture import Architecture

DELTA_RULE_OP = "flashslm_delta_rule"  # the custom operation's name in vLLM's library
LAYER_PREFIX = "model.layers."

_WHOLE_MODEL = {
    EMBEDDING: "model.embed_tokens.weight",
    MEMORY_TOKENS: "model.embed_tokens.weight",  # the meta tokens are the last ids of the vocabulary
    "model.final_layernorm.weight": "model.final_layernorm.weight",
}
# Exported name -> parameter, both within their layer; parts of one parameter in its order.
_IN_LAYER = {
    "input_layernorm.weight": "norm.weight",
    "pre_ffn_layernorm.weight": "norm.weight",
    "self_attn.q_proj.weight": "operator.qkv_proj.weight",
    "self_attn.k_proj.weight": "operator.qkv_proj.weight",
    "self_attn.v_proj.weight": "operator.qkv_proj.weight",
    "self_attn.o_proj.weight": "operator.o_proj.weight",
    "self_attn.q_norm.weight": "operator.q_norm.weight",
    "self_attn.k_norm.weight": "operator.k_norm.weight",
    "gla.q_proj.weight": "operator.in_proj.weight",
    "gla.k_proj.weight": "operator.in_proj.weight",
    "gla.v_proj.weight": "operator.in_proj.weight",
    "gla.b_proj.weight": "operator.in_proj.weight",
    "gla.q_conv1d.weight": "operator.conv_weight",
    "gla.k_conv1d.weight": "operator.conv_weight",
    "gla.v_conv1d.weight": "operator.conv_weight",
    "gla.o_norm.weight": "operator.o_norm.weight",
    "gla.o_proj.weight": "operator.o_proj.weight",
    "mamba.in_proj.weight": "operator.in_proj.weight",
    "mamba.conv1d.weight": "operator.conv1d.weight",
    "mamba.conv1d.bias": "operator.conv1d.bias",
    "mamba.dt_bias": "operator.dt_bias",
    "mamba.A_log": "operator.A",  # as -exp(A_log)
    "mamba.D": "operator.D",
    "mamba.norm.weight": "operator.norm.weight",
    "mamba.out_proj.weight": "operator.out_proj.weight",
    "ffn.gate_proj.weight": "operator.gate_up_proj.weight",
    "ffn.up_proj.weight": "operator.gate_up_proj.weight",
    "ffn.down_proj.weight": "operator.down_proj.weight",
}


class Placement(NamedTuple):
    """Rows `first_row` to `first_row + shape[0]` of a parameter."""

    parameter: str
    first_row: int
    shape: tuple[int, ...]


def placements(architecture: Architecture) -> dict[str, Placement]:
    """Exported tensor name -> its place, for every tensor of the export. `shape` is the exported one."""
    shapes = exported_shapes(architecture)
    order = [*_WHOLE_MODEL, *_IN_LAYER]
    rows: dict[str, int] = {}
    result = {}
    for name in sorted(shapes, key=lambda name: order.index(_within_layer(name))):
        parameter = parameter_name(name)
        result[name] = Placement(parameter, rows.get(parameter, 0), shapes[name])
        rows[parameter] = rows.get(parameter, 0) + shapes[name][0]
    return result


def parameter_name(name: str) -> str:
    """The parameter that an exported tensor belongs to. Raises KeyError for a name that no export has."""
    if not name.startswith(LAYER_PREFIX):
        return _WHOLE_MODEL[name]
    return name.removesuffix(_within_layer(name)) + _IN_LAYER[_within_layer(name)]


def _within_layer(name: str) -> str:
    return name.removeprefix(LAYER_PREFIX).partition(".")[2] if name.startswith(LAYER_PREFIX) else name
