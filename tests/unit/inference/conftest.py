import pytest
import torch

from flashslm.models.architecture import Architecture
from flashslm.models.hybrid import HybridLM


@pytest.fixture
def architecture() -> Architecture:
    return Architecture(
        operators="DFMFAF",
        hidden_size=32,
        num_heads=4,
        num_kv_heads=2,
        ffn_size=48,
        mamba_state=12,
        mamba_head_dim=8,
        mamba_expand=2,
        vocab_size=50,
        num_meta_tokens=6,
        max_position_embeddings=128,
        rope_theta=10_000.0,
        norm_eps=1e-6,
    )


@pytest.fixture
def model(architecture) -> HybridLM:
    """fp64, so that an argmax does not hang on rounding; weights large enough for varied continuations."""
    model = HybridLM.build(architecture, dtype=torch.float64, seed=1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and name != "meta_tokens":
                parameter.mul_(8)
    return model
