"""config.json of an export from an Architecture, and back. No torch and no transformers here."""

from typing import Any

from flashslm.export.names import LAYER_TYPES
from flashslm.models.architecture import CONV_SIZE, Architecture, InfeasibleArchitecture

CLASS_NAME = "NemotronFlashForCausalLM"
CONFIG_CLASS = "configuration_nemotron_flash.NemotronFlashConfig"
MODEL_CLASS = f"modeling_nemotron_flash.{CLASS_NAME}"
DTYPES = ("bfloat16", "float32")
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
INITIALIZER_RANGE = 0.02

# Architecture field -> config.json field, one to one.
_SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "mamba_state": "mamba_d_state",
    "mamba_head_dim": "mamba2_headdim",
    "mamba_expand": "mamba_expand",
    "num_meta_tokens": "num_memory_tokens",
    "max_position_embeddings": "max_position_embeddings",
    "rope_theta": "rope_theta",
    "norm_eps": "rms_norm_eps",
}

# Fields every export shares: the value we write, then the other values that mean the same to the runtime.
_FIXED: dict[str, tuple[Any, ...]] = {
    "architectures": ([CLASS_NAME],),
    "model_type": ("nemotron_flash",),
    "attn_hidden_size": (-1,),
    "kq_head_dim": (-1,),
    "v_head_dim": (-1,),
    "kq_norm": ("none",),
    "rope": (True,),
    "rope_type": ("default", None),
    "orig_max_position_embeddings": (None,),
    "sliding_window": (None,),  # TensorRT-LLM reads any number as a window of one token
    "global_attn_idx": ([],),
    "attention_dropout": (0.0,),
    "intermediate_size": (0,),  # mixers stand alone; every FFN is a layer of its own
    "mlp_hidden_act": ("silu",),
    "mamba_d_conv": (CONV_SIZE,),
    "tie_word_embeddings": (True,),
}


class ConfigMismatch(ValueError):
    """A config.json that no Architecture gives; the message names every field that does not fit."""


def config_from_architecture(architecture: Architecture, dtype: str, token_ids: dict[str, int]) -> dict[str, Any]:
    """Every field of config.json; `token_ids` has bos_token_id, eos_token_id and pad_token_id.

    `max_position_embeddings` counts the meta tokens too. Raises InfeasibleArchitecture where the FFN width cannot be
    written as a ratio of the hidden size.
    """
    values = architecture.model_dump()
    return (
        {name: allowed[0] for name, allowed in _FIXED.items()}
        | {"auto_map": {"AutoConfig": CONFIG_CLASS, "AutoModelForCausalLM": MODEL_CLASS}, "dtype": dtype}
        | {theirs: values[ours] for ours, theirs in _SIZES.items()}
        | {
            "num_hidden_layers": len(architecture.operators),
            "layer_types": [LAYER_TYPES[operator] for operator in architecture.operators],
            "ffn_expand_ratio": ffn_ratio(architecture.ffn_size, architecture.hidden_size),
            "initializer_range": INITIALIZER_RANGE,
        }
        | {name: token_ids[name] for name in TOKEN_IDS}
    )


def ffn_ratio(ffn_size: int, hidden_size: int) -> float:
    """The shortest decimal ratio with int(ratio·hidden) // 128 · 128 == ffn_size."""
    for decimals in range(18):
        ratio = round((ffn_size + 0.5) / hidden_size, decimals)
        if _ffn_size(ratio, hidden_size) == ffn_size:
            return ratio
    raise InfeasibleArchitecture(
        f"ffn_size is {ffn_size}: an export holds the FFN width as a ratio rounded down to a multiple of 128; "
        f"use {max(128, ffn_size // 128 * 128)}"
    )


def architecture_from_config(config: dict[str, Any]) -> Architecture:
    """The Architecture behind a config.json. Raises ConfigMismatch that names every field that does not fit."""
    problems = config_problems(config)
    if problems:
        raise ConfigMismatch("config.json: " + "; ".join(problems))
    letters = {name: letter for letter, name in LAYER_TYPES.items()} | {"m": "M"}
    try:
        return Architecture(
            operators="".join(letters[name] for name in config["layer_types"][: config["num_hidden_layers"]]),
            ffn_size=_ffn_size(config["ffn_expand_ratio"], config["hidden_size"]),
            **{ours: config[theirs] for ours, theirs in _SIZES.items()},
        )
    except ValueError as error:  # pydantic's, with Architecture's own message inside
        raise ConfigMismatch(f"config.json: {error}") from error


def config_problems(config: dict[str, Any]) -> list[str]:
    """What keeps a config.json from being one of ours: missing fields, wrong types (1.0 is no int), wrong values."""
    kinds = {theirs: (int,) for theirs in _SIZES.values()} | {
        "rope_theta": (float, int),
        "rms_norm_eps": (float,),
        "initializer_range": (float,),
        "ffn_expand_ratio": (float, int),
        "num_hidden_layers": (int,),
        "layer_types": (list,),
        "auto_map": (dict,),
        "dtype": (str,),
        **{name: (int,) for name in TOKEN_IDS},
    }
    missing = [f"{name} is missing" for name in (*_FIXED, *kinds) if name not in config]
    fixed = [
        f"{name} is {config[name]!r}: only {' or '.join(map(repr, allowed))} is supported"
        for name, allowed in _FIXED.items()
        if name in config and not any(type(v) is type(config[name]) and v == config[name] for v in allowed)
    ]
    typed = [
        f"{name} is {config[name]!r}: expected {' or '.join(kind.__name__ for kind in allowed)}"
        for name, allowed in kinds.items()
        if name in config and type(config[name]) not in allowed
    ]
    return missing + fixed + typed or _value_problems(config)


def _value_problems(config: dict[str, Any]) -> list[str]:
    """Values that have the right type and still cannot be."""
    problems = []
    if config["dtype"] not in DTYPES:
        problems.append(f"dtype is '{config['dtype']}': allowed are {' and '.join(DTYPES)}")
    if len(config["layer_types"]) != config["num_hidden_layers"]:
        problems.append(f"{len(config['layer_types'])} layer_types for num_hidden_layers {config['num_hidden_layers']}")
    unknown = sorted({str(name) for name in config["layer_types"]} - {*LAYER_TYPES.values(), "m"})
    if unknown:
        problems.append(f"layer_types has {', '.join(unknown)}: allowed are {', '.join(LAYER_TYPES.values())}")
    if config["auto_map"].get("AutoConfig") != CONFIG_CLASS:
        problems.append(f"auto_map.AutoConfig is {config['auto_map'].get('AutoConfig')!r}: expected '{CONFIG_CLASS}'")
    if config["auto_map"].get("AutoModelForCausalLM", MODEL_CLASS) != MODEL_CLASS:
        problems.append(f"auto_map.AutoModelForCausalLM is not '{MODEL_CLASS}'")
    for name in TOKEN_IDS:
        if not 0 <= config[name] < config["vocab_size"]:
            problems.append(f"{name} is {config[name]}: outside the vocabulary of {config['vocab_size']}")
    return problems


def _ffn_size(ratio: float, hidden_size: int) -> int:
    return int(ratio * hidden_size) // 128 * 128
