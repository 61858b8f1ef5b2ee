"""Architectures of ours that are Qwen3's too: what libraries with that model are compared on."""

from typing import Any

from flashslm.models.architecture import Architecture
from flashslm.models.presets import PRESETS


def is_qwen3(a: Architecture) -> bool:
    """Whether the Qwen3 class of transformers, and of vLLM, has this shape."""
    return a.operators == "AF" * (len(a.operators) // 2) and a.qk_norm and not a.num_meta_tokens


def qwen3_presets() -> list[str]:
    return [name for name, architecture in PRESETS.items() if is_qwen3(architecture)]


def qwen3_config(a: Architecture) -> Any:
    """transformers' Qwen3Config of this shape."""
    from transformers import Qwen3Config

    return Qwen3Config(
        vocab_size=a.vocab_size,
        hidden_size=a.hidden_size,
        intermediate_size=a.ffn_size,
        num_hidden_layers=a.operators.count("A"),
        num_attention_heads=a.num_heads,
        num_key_value_heads=a.num_kv_heads,
        head_dim=a.head_dim,
        max_position_embeddings=a.max_position_embeddings,
        rms_norm_eps=a.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": a.rope_theta},
        tie_word_embeddings=True,
    )
