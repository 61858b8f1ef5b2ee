"""The smallest useful model of every exportable operator."""

from typing import Any

from flashslm.models.architecture import Architecture


def tiny_hybrid(**changes: Any) -> Architecture:
    """A hybrid at sizes that take a moment; `changes` are fields of the architecture."""
    sizes: dict[str, Any] = {
        "operators": "DFMFAF",
        "hidden_size": 32,
        "num_heads": 4,
        "num_kv_heads": 2,
        "ffn_size": 48,
        "mamba_state": 12,
        "mamba_head_dim": 8,
        "mamba_expand": 2,
        "vocab_size": 50,
        "num_meta_tokens": 6,
        "max_position_embeddings": 128,
        "rope_theta": 10_000.0,
        "norm_eps": 1e-6,
    }
    return Architecture.model_validate(sizes | changes)
