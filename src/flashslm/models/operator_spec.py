"""The operators: one row per operator with everything that the project needs to know without building a layer.

This module imports nothing of the project, so that recipes, plots and the latency table can read it. Costs are closed
forms of an architecture's sizes; a test compares them with the built layers. CONTRIBUTING.md says how to add a row.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

CONV_SIZE = 4  # taps of the causal convolutions; the export contract fixes DeltaNet's at 4
GLA_GATE_RANK = 16  # rank of the projection to GLA's decays
FFN = "F"  # what the search puts after a mixer

# Sizes of a recipe's model section that a search may vary, and the field of an architecture that each decides.
SIZE_FIELDS = {"ffn_ratio": "ffn_size", "mamba_state": "mamba_state", "head_dim": "head_dim"}

Shape = tuple[int, ...]


class Sizes(Protocol):
    """The sizes of an `Architecture` that the cost of its operators depends on."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def num_kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def heads_size(self) -> int: ...
    @property
    def gla_key_dim(self) -> int: ...
    @property
    def ffn_size(self) -> int: ...
    @property
    def mamba_inner(self) -> int: ...
    @property
    def mamba_state(self) -> int: ...
    @property
    def mamba_heads(self) -> int: ...
    @property
    def mamba_head_dim(self) -> int: ...
    @property
    def mamba_conv_channels(self) -> int: ...
    @property
    def mamba_projected_rows(self) -> int: ...
    @property
    def qk_norm(self) -> bool: ...


@dataclass(frozen=True, kw_only=True)
class OperatorSpec:
    """What is known of an operator. Functions take an architecture; states are those of one sequence.

    `sized_by` is the one of SIZE_FIELDS that the layer depends on, if any. `parameters` counts a layer without its
    input norm. `state_shapes` are the recurrent states (at least fp32) by the name of their field in the layer's state,
    `state_flops` the FLOP per token on each of their values: the decay 1, the update 2, the read-out 2, the delta
    rule's error 2. `keys` says whether keys and values are kept: of all tokens, of the last `window`, or none. `reads`
    are the linear layers whose rows meet the residual stream, `writes` those whose columns are added to it; `heads` are
    the sizes of the heads (or groups) that such a layer makes or takes, in its own order, where it has some.
    `export_blocker` is why TensorRT-LLM's Nemotron-Flash class cannot hold the operator.
    """

    name: str
    label: str
    color: str
    layer: str  # "module:class", imported when a model is built
    is_mixer: bool
    parameters: Callable[[Sizes], int]
    sized_by: str = ""
    state_shapes: Callable[[Sizes], dict[str, Shape]] = lambda a: {}
    state_flops: int = 0
    conv_channels: Callable[[Sizes], int] = lambda a: 0
    keys: Literal["none", "window", "all"] = "none"
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    heads: Mapping[str, Callable[[Sizes], Shape]] = field(default_factory=dict)
    export_blocker: str = ""

    @property
    def depends_on_context(self) -> bool:
        """Whether a decode step takes longer in a longer context."""
        return self.keys != "none"


def _attention_parameters(a: Sizes) -> int:
    queries_and_output = 2 * a.hidden_size * a.heads_size
    return queries_and_output + 2 * a.hidden_size * a.num_kv_heads * a.head_dim + (2 * a.head_dim if a.qk_norm else 0)


def _deltanet_parameters(a: Sizes) -> int:
    projections = 4 * a.hidden_size * a.heads_size + a.hidden_size * a.num_heads
    return projections + 3 * a.heads_size * CONV_SIZE + a.head_dim


def _gated_deltanet_parameters(a: Sizes) -> int:
    return _deltanet_parameters(a) + a.hidden_size * a.heads_size + (a.hidden_size + 2) * a.num_heads


def _gla_parameters(a: Sizes) -> int:
    key_size = a.num_heads * a.gla_key_dim
    projections = 3 * a.hidden_size * a.heads_size + 2 * a.hidden_size * key_size
    return projections + GLA_GATE_RANK * (a.hidden_size + key_size) + key_size + a.head_dim


def _mamba2_parameters(a: Sizes) -> int:
    convolution = a.mamba_conv_channels * (CONV_SIZE + 1)
    projections = a.mamba_projected_rows * a.hidden_size + a.mamba_inner * a.hidden_size
    return projections + convolution + 3 * a.mamba_heads + a.mamba_inner


def _delta_state(a: Sizes) -> dict[str, Shape]:
    return {"delta": (a.num_heads, a.head_dim, a.head_dim)}


def _heads(a: Sizes) -> Shape:
    return (a.head_dim,) * a.num_heads


def _kv_heads(a: Sizes) -> Shape:
    return (a.head_dim,) * a.num_kv_heads


def _gla_key_heads(a: Sizes) -> Shape:
    return (a.gla_key_dim,) * a.num_heads


def _mamba2_heads(a: Sizes) -> Shape:
    return (a.mamba_head_dim,) * a.mamba_heads


def _mamba2_parts(a: Sizes) -> Shape:
    """Heads of z and of x, the group of B, that of C, and dt."""
    return (*_mamba2_heads(a) * 2, a.mamba_state, a.mamba_state, a.mamba_heads)


_ATTENTION_HEADS = {"q_proj": _heads, "k_proj": _kv_heads, "v_proj": _kv_heads, "o_proj": _heads}
_GLA_HEADS = {
    "q_proj": _gla_key_heads,
    "k_proj": _gla_key_heads,
    "v_proj": _heads,
    "g_proj": _heads,
    "o_proj": _heads,
}
_DELTANET_HEADS = {name: _heads for name in ("q_proj", "k_proj", "v_proj", "o_proj")}

OPERATOR_SPECS = {
    "D": OperatorSpec(
        name="deltanet",
        label="DeltaNet",
        color="#2563eb",
        layer="flashslm.models.deltanet:DeltaNet",
        is_mixer=True,
        parameters=_deltanet_parameters,
        sized_by="head_dim",
        state_shapes=_delta_state,
        state_flops=6,
        conv_channels=lambda a: 3 * a.heads_size,
        reads=("q_proj", "k_proj", "v_proj", "b_proj"),
        writes=("o_proj",),
        heads=_DELTANET_HEADS,
    ),
    "M": OperatorSpec(
        name="mamba2",
        label="Mamba-2",
        color="#d97706",
        layer="flashslm.models.mamba2:Mamba2",
        is_mixer=True,
        parameters=_mamba2_parameters,
        sized_by="mamba_state",
        state_shapes=lambda a: {"ssm": (a.mamba_heads, a.mamba_head_dim, a.mamba_state)},
        state_flops=6,  # no error term, but a step size
        conv_channels=lambda a: a.mamba_conv_channels,
        reads=("in_proj",),
        writes=("out_proj",),
        heads={"in_proj": _mamba2_parts, "out_proj": _mamba2_heads},
    ),
    "A": OperatorSpec(
        name="attention",
        label="attention",
        color="#dc2626",
        layer="flashslm.models.attention:Attention",
        is_mixer=True,
        parameters=_attention_parameters,
        sized_by="head_dim",
        keys="all",
        reads=("q_proj", "k_proj", "v_proj"),
        writes=("o_proj",),
        heads=_ATTENTION_HEADS,
    ),
    FFN: OperatorSpec(
        name="ffn",
        label="FFN",
        color="#059669",
        layer="flashslm.models.ffn:FFN",
        is_mixer=False,
        parameters=lambda a: 3 * a.hidden_size * a.ffn_size,
        sized_by="ffn_ratio",
        reads=("gate_proj", "up_proj"),
        writes=("down_proj",),
    ),
    "G": OperatorSpec(
        name="gated_deltanet",
        label="gated DeltaNet",
        color="#1e3a8a",
        layer="flashslm.models.gated_deltanet:GatedDeltaNet",
        is_mixer=True,
        parameters=_gated_deltanet_parameters,
        sized_by="head_dim",
        state_shapes=_delta_state,
        state_flops=7,
        conv_channels=lambda a: 3 * a.heads_size,
        export_blocker="the class has no gated DeltaNet layer",
        reads=("q_proj", "k_proj", "v_proj", "b_proj", "a_proj", "g_proj"),
        writes=("o_proj",),
        heads=_DELTANET_HEADS | {"g_proj": _heads},
    ),
    "L": OperatorSpec(
        name="gla",
        label="GLA",
        color="#7c3aed",
        layer="flashslm.models.gla:GLA",
        is_mixer=True,
        parameters=_gla_parameters,
        sized_by="head_dim",
        state_shapes=lambda a: {"memory": (a.num_heads, a.gla_key_dim, a.head_dim)},
        state_flops=5,
        export_blocker="the class has no gated linear attention layer",
        reads=("q_proj", "k_proj", "v_proj", "g_proj", "decay_down"),
        writes=("o_proj",),
        heads=_GLA_HEADS,
    ),
    "W": OperatorSpec(
        name="window_attention",
        label="window attention",
        color="#f87171",
        layer="flashslm.models.attention:WindowAttention",
        is_mixer=True,
        parameters=_attention_parameters,
        sized_by="head_dim",
        keys="window",
        export_blocker="the class reads any sliding window as a window of one token",
        reads=("q_proj", "k_proj", "v_proj"),
        writes=("o_proj",),
        heads=_ATTENTION_HEADS,
    ),
}
OPERATORS = "".join(OPERATOR_SPECS)
MIXERS = "".join(letter for letter, spec in OPERATOR_SPECS.items() if spec.is_mixer)
EXPORTABLE_OPERATORS = "".join(letter for letter, spec in OPERATOR_SPECS.items() if not spec.export_blocker)
EXPORTABLE_MIXERS = "".join(letter for letter in EXPORTABLE_OPERATORS if letter in MIXERS)

EMBEDDING = "embedding"  # also the head: among the weight matrices that weight normalisation covers


def usual_axes() -> dict[str, str]:
    """How Nemotron-Flash (section 3.3, figure 6) normalises each kind of weight matrix, by "<operator>.<layer>"."""
    axes = {EMBEDDING: "rows"}
    for letter, spec in OPERATOR_SPECS.items():
        axes |= {f"{letter}.{name}": "rows" for name in spec.reads}
        axes |= {f"{letter}.{name}": "columns" for name in spec.writes}
    return axes


LM_HEAD = "head"  # embedding, final norm, logits and sampling: in tables and plots beside the operators
LABELS = {letter: spec.label for letter, spec in OPERATOR_SPECS.items()} | {LM_HEAD: "embedding + head"}
COLORS = {letter: spec.color for letter, spec in OPERATOR_SPECS.items()} | {LM_HEAD: "#6b7280"}


def export_blockers(operators: str) -> list[str]:
    """Why these operators cannot be exported, one line per operator that cannot; empty: they can."""
    specs = ((letter, OPERATOR_SPECS[letter]) for letter in dict.fromkeys(operators) if letter in OPERATOR_SPECS)
    return [f"{letter} ({spec.name}): {spec.export_blocker}" for letter, spec in specs if spec.export_blocker]


def depends_on_context(part: str) -> bool:
    """Whether a part of a decode step, an operator by its letter or the head, takes longer in a longer context."""
    return part != LM_HEAD and OPERATOR_SPECS[part].depends_on_context
