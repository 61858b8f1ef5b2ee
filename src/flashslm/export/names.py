"""The bijection between HybridLM's parameters and the exported tensors, with every exported shape. No torch here.

The exported names are those TensorRT-LLM's Nemotron-Flash class reads. Its loader is lax (a misspelt name is silent and
leaves random weights), so this table is the one place where a name is written and `verify.py` holds a directory to it.
"""

from flashslm.models.architecture import Architecture
from flashslm.models.operator_spec import CONV_SIZE

EMBEDDING = "model.embed_tokens.weight"
MEMORY_TOKENS = "model.memory_tokens"
HEAD_WEIGHT = "lm_head.weight"  # never exported: the embedding is the head
LAYER_TYPES = {"D": "deltanet", "M": "m2", "A": "a", "F": "f"}

# (HybridLM's name, exported name, exported shape). Sizes: h hidden, H heads, d head, q H x d, kv KV heads x d, f FFN,
# i Mamba inner, c Mamba convolution channels, r rows of Mamba's in_proj, m Mamba heads, w convolution width.
# A depthwise convolution is [c, w] in HybridLM and [c, 1, w] (PyTorch's Conv1d) in the export.
_TOP = (
    ("embedding.weight", EMBEDDING, "vocab h"),
    ("meta_tokens", MEMORY_TOKENS, "meta h"),
    ("final_norm.weight", "model.final_layernorm.weight", "h"),
)
_QK_NORM = ("mixer.q_norm.weight", "mixer.k_norm.weight")
_LAYERS = {
    "A": (
        ("norm.weight", "input_layernorm.weight", "h"),
        ("mixer.q_proj.weight", "self_attn.q_proj.weight", "q h"),
        ("mixer.k_proj.weight", "self_attn.k_proj.weight", "kv h"),
        ("mixer.v_proj.weight", "self_attn.v_proj.weight", "kv h"),
        ("mixer.o_proj.weight", "self_attn.o_proj.weight", "h q"),
        ("mixer.q_norm.weight", "self_attn.q_norm.weight", "d"),
        ("mixer.k_norm.weight", "self_attn.k_norm.weight", "d"),
    ),
    "D": (
        ("norm.weight", "input_layernorm.weight", "h"),
        ("mixer.q_proj.weight", "gla.q_proj.weight", "h h"),
        ("mixer.k_proj.weight", "gla.k_proj.weight", "h h"),
        ("mixer.v_proj.weight", "gla.v_proj.weight", "h h"),
        ("mixer.b_proj.weight", "gla.b_proj.weight", "H h"),
        ("mixer.q_conv.weight", "gla.q_conv1d.weight", "h 1 w"),
        ("mixer.k_conv.weight", "gla.k_conv1d.weight", "h 1 w"),
        ("mixer.v_conv.weight", "gla.v_conv1d.weight", "h 1 w"),
        ("mixer.o_norm.weight", "gla.o_norm.weight", "d"),
        ("mixer.o_proj.weight", "gla.o_proj.weight", "h h"),
    ),
    "M": (
        ("norm.weight", "input_layernorm.weight", "h"),
        ("mixer.in_proj.weight", "mamba.in_proj.weight", "r h"),
        ("mixer.conv.weight", "mamba.conv1d.weight", "c 1 w"),
        ("mixer.conv.bias", "mamba.conv1d.bias", "c"),
        ("mixer.dt_bias", "mamba.dt_bias", "m"),
        ("mixer.A_log", "mamba.A_log", "m"),
        ("mixer.D", "mamba.D", "m"),
        ("mixer.norm.weight", "mamba.norm.weight", "i"),
        ("mixer.out_proj.weight", "mamba.out_proj.weight", "h i"),
    ),
    "F": (
        ("norm.weight", "pre_ffn_layernorm.weight", "h"),
        ("ffn.gate_proj.weight", "ffn.gate_proj.weight", "f h"),
        ("ffn.up_proj.weight", "ffn.up_proj.weight", "f h"),
        ("ffn.down_proj.weight", "ffn.down_proj.weight", "h f"),
    ),
}


def exported_names(architecture: Architecture) -> dict[str, str]:
    """HybridLM parameter name -> exported tensor name."""
    return {ours: theirs for ours, theirs, _ in _rows(architecture)}


def exported_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Exported tensor name -> shape; there is no other tensor (the head is tied, weight normalisation adds none)."""
    a = architecture
    sizes = {
        "1": 1,
        "h": a.hidden_size,
        "H": a.num_heads,
        "d": a.head_dim,
        "q": a.heads_size,
        "kv": a.num_kv_heads * a.head_dim,
        "f": a.ffn_size,
        "i": a.mamba_inner,
        "c": a.mamba_conv_channels,
        "r": a.mamba_projected_rows,
        "m": a.mamba_heads,
        "w": CONV_SIZE,
        "vocab": a.vocab_size,
        "meta": a.num_meta_tokens,
    }
    return {theirs: tuple(sizes[letter] for letter in shape.split()) for _, theirs, shape in _rows(a)}


def _rows(architecture: Architecture) -> list[tuple[str, str, str]]:
    a = architecture
    absent = (() if a.num_meta_tokens else ("meta_tokens",)) + (() if a.qk_norm else _QK_NORM)
    rows = [row for row in _TOP if row[0] not in absent]
    for index, operator in enumerate(a.operators):
        layer = (row for row in _LAYERS[operator] if row[0] not in absent)
        rows += [(f"layers.{index}.{o}", f"model.layers.{index}.{t}", s) for o, t, s in layer]
    return rows
