"""config.json of an export from an Architecture, and back. No torch and no transformers here."""

import re
from typing import Any, get_args

from pydantic import ValidationError

from flashslm.config import WeightFormat
from flashslm.export.names import LAYER_TYPES
from flashslm.models.architecture import Architecture, InfeasibleArchitecture
from flashslm.models.operator_spec import CONV_SIZE, export_blockers

CLASS_NAME = "NemotronFlashForCausalLM"
MODEL_TYPE = "nemotron_flash"
CONFIG_CLASS = "configuration_nemotron_flash.NemotronFlashConfig"
MODEL_CLASS = f"modeling_nemotron_flash.{CLASS_NAME}"
DTYPES = ("bfloat16", "float32")
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
INITIALIZER_RANGE = 0.02
SERVED_WEIGHTS = "served_weights"  # a field of ours, which may be absent: what our engine rounds stored weights to

# Architecture field -> config.json field, one to one.
SIZES = {
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

# Fields that are the same in every model: the value we write, then others that mean the same to the runtime.
_FIXED: dict[str, tuple[Any, ...]] = {
    "attn_hidden_size": (-1,),
    "kq_head_dim": (-1,),
    "v_head_dim": (-1,),
    "rope": (True,),
    "sliding_window": (None,),  # TensorRT-LLM reads any number as a window of one token
    "global_attn_idx": ([],),
    "intermediate_size": (0,),  # mixers stand alone; every FFN is a separate layer
    "mlp_hidden_act": ("silu",),
    "mamba_d_conv": (CONV_SIZE,),
    "tie_word_embeddings": (True,),
}
# Fields with a choice.
_CHOICES: dict[str, tuple[Any, ...]] = {"kq_norm": ("none", "rms"), "rope_type": ("default", "ntk", None)}
# Fields that say what the directory is, and none of its function.
_IDENTITY: dict[str, tuple[Any, ...]] = {
    "architectures": ([CLASS_NAME],),
    "model_type": (MODEL_TYPE,),
    "attention_dropout": (0.0,),
    "dtype": DTYPES,
}
_MODEL_TYPES: dict[str, tuple[type, ...]] = {theirs: (int,) for theirs in SIZES.values()} | {
    "rope_theta": (float, int),
    "orig_max_position_embeddings": (int, type(None)),
    "rms_norm_eps": (float,),
    "ffn_expand_ratio": (float, int),
    "num_hidden_layers": (int,),
    "layer_types": (list,),
}
_IDENTITY_TYPES: dict[str, tuple[type, ...]] = {
    "initializer_range": (float,),
    "auto_map": (dict,),
    **{name: (int,) for name in TOKEN_IDS},
}
# What a number may be: past any model, within what the runtimes' 32-bit integers and floats hold.
MAX_SIZE = 2**31 - 1
_LIMITS: dict[str, tuple[float, float]] = dict.fromkeys([*SIZES.values(), "num_hidden_layers"], (1, MAX_SIZE)) | {
    "vocab_size": (2, MAX_SIZE),
    "hidden_size": (8, MAX_SIZE),
    "num_memory_tokens": (0, MAX_SIZE),
    "orig_max_position_embeddings": (0, MAX_SIZE),
    "rope_theta": (1, 10**12),
    "rms_norm_eps": (1e-20, 1),
    "ffn_expand_ratio": (1e-9, 10**9),
    "initializer_range": (0, 1),
}
MODEL_FIELDS = frozenset([*_FIXED, *_CHOICES, *_MODEL_TYPES])
FIELDS = MODEL_FIELDS | {*_IDENTITY, *_IDENTITY_TYPES}


class ConfigMismatch(ValueError):
    """A config.json that no Architecture gives; the message names every field that does not fit."""


def export_problems(architecture: Architecture) -> list[str]:
    """Why an export cannot hold this architecture, one line per reason; empty: it can. Cheap: ask before a run."""
    a = architecture
    problems = [f"operator {blocker}" for blocker in export_blockers(a.operators)]
    if a.heads_size != a.hidden_size:
        problems.append(
            f"{a.num_heads} heads of head_dim {a.head_dim} are {a.heads_size} channels: "
            f"hidden_size, {a.hidden_size}, must be as many"
        )
    problems += [
        f"{ours} {getattr(a, ours)}: the format takes {_allowed(theirs)}"
        for ours, theirs in SIZES.items()
        if not _within_limits(theirs, getattr(a, ours))
    ]
    if a.ffn_size % 128:
        problems.append(
            f"ffn_size {a.ffn_size} is not a multiple of 128 (the format holds the width as a ratio to hidden_size, "
            f"rounded down to one): use {max(128, a.ffn_size // 128 * 128)}"
        )
    if "M" in a.operators and a.mamba_heads % 8:
        problems.append(
            f"{a.mamba_heads} Mamba-2 heads ({a.mamba_inner} channels by mamba_head_dim {a.mamba_head_dim}): "
            "the format wants a multiple of 8"
        )
    if a.num_meta_tokens >= a.max_position_embeddings:
        problems.append(
            f"{a.num_meta_tokens} meta tokens leave no position for text: "
            f"max_position_embeddings is {a.max_position_embeddings} and counts them"
        )
    return problems


def config_from_architecture(
    architecture: Architecture, dtype: str, token_ids: dict[str, int], weights: WeightFormat = "full"
) -> dict[str, Any]:
    """Every field of config.json; `token_ids` has bos_token_id, eos_token_id and pad_token_id.

    `max_position_embeddings` counts the meta tokens too. `Architecture.window` is not kept: no exported operator has
    one. Raises InfeasibleArchitecture with every `export_problems`.
    """
    if problems := export_problems(architecture):
        raise InfeasibleArchitecture("this architecture cannot be exported: " + "; ".join(problems))
    values = architecture.model_dump()
    return (
        {name: allowed[0] for name, allowed in (_IDENTITY | _FIXED).items()}
        | {"auto_map": {"AutoConfig": CONFIG_CLASS, "AutoModelForCausalLM": MODEL_CLASS}, "dtype": dtype}
        | {theirs: values[ours] for ours, theirs in SIZES.items()}
        | {
            "num_hidden_layers": len(architecture.operators),
            "layer_types": [LAYER_TYPES[operator] for operator in architecture.operators],
            "kq_norm": "rms" if architecture.qk_norm else "none",
            "rope_type": architecture.rope_type,
            "orig_max_position_embeddings": architecture.original_max_position_embeddings or None,
            "ffn_expand_ratio": ffn_ratio(architecture.ffn_size, architecture.hidden_size),
            "initializer_range": INITIALIZER_RANGE,
        }
        | {name: token_ids[name] for name in TOKEN_IDS}
        | ({SERVED_WEIGHTS: weights} if weights != "full" else {})
    )


def served_weights(config: dict[str, Any]) -> WeightFormat:
    """The weights that our engine decodes with; other runtimes take those that are stored. Raises ConfigMismatch."""
    if problems := served_weights_problems(config):
        raise ConfigMismatch("config.json: " + "; ".join(problems))
    found: WeightFormat = config.get(SERVED_WEIGHTS, "full")
    return found


def served_weights_problems(config: dict[str, Any]) -> list[str]:
    allowed, found = get_args(WeightFormat), config.get(SERVED_WEIGHTS, "full")
    if found in allowed:
        return []
    return [f"{SERVED_WEIGHTS} is {shown(found)}: only {' or '.join(map(repr, allowed))} is supported"]


def ffn_ratio(ffn_size: int, hidden_size: int) -> float:
    """The shortest decimal ratio with int(ratio·hidden) // 128 · 128 == ffn_size, a multiple of 128."""
    candidates = (round((ffn_size + 0.5) / hidden_size, decimals) for decimals in range(18))
    return next(ratio for ratio in candidates if _ffn_size(ratio, hidden_size) == ffn_size)


def architecture_from_config(config: dict[str, Any]) -> Architecture:
    """The Architecture behind a config.json. Raises ConfigMismatch that names every field that does not fit."""
    if problems := model_problems(config):
        raise ConfigMismatch("config.json: " + "; ".join(problems))
    letters = {name: letter for letter, name in LAYER_TYPES.items()} | {"m": "M"}
    try:
        return Architecture(
            operators="".join(letters[name] for name in config["layer_types"]),
            ffn_size=_ffn_size(config["ffn_expand_ratio"], config["hidden_size"]),
            qk_norm=config["kq_norm"] == "rms",
            rope_type=config["rope_type"] or "default",
            original_max_position_embeddings=config["orig_max_position_embeddings"] or 0,
            **{ours: config[theirs] for ours, theirs in SIZES.items()},
        )
    except ValidationError as error:
        found = [(".".join(map(str, e["loc"])), e["msg"].removeprefix("Value error, ")) for e in error.errors()]
        reasons = "; ".join(f"{name} {reason}".strip() for name, reason in found)
        for ours, theirs in SIZES.items():
            reasons = re.sub(rf"\b{ours}\b", theirs, reasons)
        raise ConfigMismatch(f"config.json: {reasons}") from error


def config_problems(config: dict[str, Any]) -> list[str]:
    """Why a config.json is not an export's: missing fields, wrong types (1.0 is not an int), wrong values."""
    problems = model_problems(config) + _field_problems(config, _IDENTITY, _IDENTITY_TYPES)
    problems += served_weights_problems(config)
    return problems or _identity_problems(config)


def model_problems(config: dict[str, Any]) -> list[str]:
    """The same for the fields that decide what the model computes."""
    return _field_problems(config, _FIXED | _CHOICES, _MODEL_TYPES) or _layer_problems(config)


def _field_problems(
    config: dict[str, Any], values: dict[str, tuple[Any, ...]], types: dict[str, tuple[type, ...]]
) -> list[str]:
    missing = [f"{name} is missing" for name in (*values, *types) if name not in config]
    valued = [
        f"{name} is {shown(config[name])}: only {' or '.join(map(repr, allowed))} is supported"
        for name, allowed in values.items()
        if name in config and not any(type(v) is type(config[name]) and v == config[name] for v in allowed)
    ]
    typed = [
        f"{name} is {shown(config[name])}: expected {' or '.join(kind.__name__ for kind in allowed)}"
        for name, allowed in types.items()
        if name in config and type(config[name]) not in allowed
    ]
    outside = [
        f"{name} is {shown(config[name])}: expected {_allowed(name)}"
        for name, allowed in types.items()
        if name in config and type(config[name]) in allowed and not _within_limits(name, config[name])
    ]
    return missing + valued + typed + outside


def _within_limits(name: str, value: Any) -> bool:
    """False for NaN too."""
    low, high = _LIMITS.get(name, (None, None))
    return low is None or high is None or value is None or low <= value <= high


def _allowed(name: str) -> str:
    low, high = _LIMITS[name]
    return f"{low:,} to {high:,}"


def shown(value: Any) -> str:
    """A value from a file in an error's line, cut where it would fill the screen."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}… ({len(text):,} characters)"


def _layer_problems(config: dict[str, Any]) -> list[str]:
    """Values that have the right type and still do not fit together."""
    problems = []
    if len(config["layer_types"]) != config["num_hidden_layers"]:
        problems.append(f"{len(config['layer_types'])} layer_types for num_hidden_layers {config['num_hidden_layers']}")
    unknown = sorted({str(name) for name in config["layer_types"]} - {*LAYER_TYPES.values(), "m"})
    if unknown:
        problems.append(f"layer_types has {', '.join(unknown)}: allowed are {', '.join(LAYER_TYPES.values())}")
    if config["num_attention_heads"] < 1 or config["hidden_size"] % config["num_attention_heads"]:
        problems.append(
            f"num_attention_heads {config['num_attention_heads']} does not divide hidden_size {config['hidden_size']}"
        )
    if not _ffn_size(config["ffn_expand_ratio"], config["hidden_size"]):
        problems.append(
            f"ffn_expand_ratio {config['ffn_expand_ratio']} of hidden_size {config['hidden_size']} is less than 128, "
            "the narrowest FFN"
        )
    if config["rope_type"] == "ntk" and not config["orig_max_position_embeddings"]:
        problems.append("rope_type is 'ntk' without orig_max_position_embeddings, the length before the extension")
    return problems


def _identity_problems(config: dict[str, Any]) -> list[str]:
    expected = {"AutoConfig": CONFIG_CLASS, "AutoModelForCausalLM": MODEL_CLASS}
    named = {"AutoConfig": None} | config["auto_map"]  # a bundle has the first alone
    problems = [
        f"auto_map.{name} is {shown(value)}: expected {expected.get(name)!r}"
        for name, value in named.items()
        if value != expected.get(name)
    ]
    for name in TOKEN_IDS:
        if not 0 <= config[name] < config["vocab_size"]:
            problems.append(f"{name} is {shown(config[name])}: outside the vocabulary of {config['vocab_size']}")
    return problems


def _ffn_size(ratio: float, hidden_size: int) -> int:
    return int(ratio * hidden_size) // 128 * 128
