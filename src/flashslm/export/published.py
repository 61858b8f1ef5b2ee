"""A published Nemotron-Flash config.json in the words of our exports; what means the same is accepted. No torch."""

from typing import Any

from flashslm.export.hf_config import (
    CLASS_NAME,
    DTYPES,
    FIELDS,
    MAX_SIZE,
    MODEL_FIELDS,
    MODEL_TYPE,
    SERVED_WEIGHTS,
    SIZES,
    model_problems,
    served_weights_problems,
)
from flashslm.models.operator_spec import CONV_SIZE

# What a file may leave out: no such field means this to the runtime, or the tensors' shapes would tell.
_DEFAULTS: dict[str, Any] = {
    "attn_hidden_size": -1,
    "kq_head_dim": -1,
    "v_head_dim": -1,
    "kq_norm": "none",
    "orig_max_position_embeddings": None,
    "sliding_window": None,
    "global_attn_idx": [],
    "intermediate_size": 0,
    "mlp_hidden_act": "silu",
    "mamba_d_conv": CONV_SIZE,
    "tie_word_embeddings": True,
}
_KINDS = {"rope_theta": float, "rms_norm_eps": float}
# Fields that are known to change nothing; any other one that is not ours is reported.
_SILENT = {
    *("_name_or_path", "attn_implementation", "attn_implementation_new", "d_conv", "hybrid_decoder_layer"),
    *("layer_type", "mamba_conv_bias", "mamba_proj_bias", "torch_dtype", "transformers_version", "use_cache"),
}


def plain_config(config: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The fields that decide the function, with `dtype`, as an export writes them; and every problem found.

    An untied head is accepted here: whether it equals the embedding is for the tensors to show.
    """
    plain = _DEFAULTS | {name: value for name, value in config.items() if name in MODEL_FIELDS}
    plain |= {name: _number(plain[name], _KINDS.get(name, int)) for name in SIZES.values() if name in plain}
    plain |= {name: -1 for name, size in _derived_sizes(plain).items() if plain[name] == size}
    if isinstance(plain.get("layer_types"), list) and isinstance(plain.get("num_hidden_layers"), int):
        plain["layer_types"] = plain["layer_types"][: plain["num_hidden_layers"]]
    if _is_full_attention(plain):
        plain |= {"sliding_window": None, "global_attn_idx": []}
    if plain["tie_word_embeddings"] is False:
        plain["tie_word_embeddings"] = True
    plain["dtype"] = config.get("dtype") or config.get("torch_dtype") or "float32"
    return plain, _identity_problems(config, plain["dtype"]) + model_problems(plain)


def ignored_fields(config: dict[str, Any]) -> list[str]:
    """Unknown fields of `config`, for a reader to judge."""
    return sorted(config.keys() - FIELDS - {SERVED_WEIGHTS} - _SILENT)


def _identity_problems(config: dict[str, Any], dtype: object) -> list[str]:
    problems = []
    if config.get("model_type", MODEL_TYPE) != MODEL_TYPE:
        problems.append(f"model_type is {config['model_type']!r}: only '{MODEL_TYPE}' is supported")
    named = config.get("architectures") or [CLASS_NAME]
    if not isinstance(named, list) or CLASS_NAME not in named:
        problems.append(f"architectures is {config['architectures']!r}: only '{CLASS_NAME}' is supported")
    if dtype not in DTYPES:
        problems.append(f"dtype is {dtype!r}: allowed are {' and '.join(DTYPES)}")
    if config.get("torch_dtype", dtype) not in (dtype, None):
        problems.append(f"dtype is {dtype!r} and torch_dtype {config['torch_dtype']!r}: which one?")
    return problems + served_weights_problems(config)


def _derived_sizes(plain: dict[str, Any]) -> dict[str, float]:
    """What -1 stands for."""
    hidden, heads = plain.get("hidden_size", 0), plain.get("num_attention_heads", 0)
    if not all(type(size) is int and 1 <= size <= MAX_SIZE for size in (hidden, heads)):
        return {}
    return {"attn_hidden_size": hidden, "kq_head_dim": hidden / heads, "v_head_dim": hidden / heads}


def _is_full_attention(plain: dict[str, Any]) -> bool:
    """No window, or a window that every attention layer is exempt from."""
    window, exempt, layers = plain["sliding_window"], plain["global_attn_idx"], plain.get("layer_types")
    if window is None:
        return exempt is None or isinstance(exempt, list)
    if not isinstance(exempt, list) or not isinstance(layers, list):
        return False
    return all(index in exempt for index, layer in enumerate(layers) if layer == "a")


def _number(value: Any, kind: type) -> Any:
    """2.0 for an int and 10000 for a float are as good; what is too large for either stays as it is."""
    whole = type(value) is int or (type(value) is float and value.is_integer())
    return kind(value) if whole and abs(value) <= 2**53 else value
