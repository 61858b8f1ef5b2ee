"""A small model of every operator, in fp64, with weights large enough for each operator to matter."""

import pytest
import torch

from flashslm.models.architecture import Architecture
from flashslm.models.hybrid import HybridLM

SIZES = {
    "operators": "DFMFAFGLW",
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
    "window": 7,
}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def make_architecture():
    """`make_architecture(operators="DF", …)`: the small sizes with changes."""
    return lambda **changes: Architecture(**(SIZES | changes))


@pytest.fixture
def make_model(make_architecture):
    """`make_model(**changes)`: fp64; no parameter is left at a special value."""

    def make(scale: float = 6.0, **changes) -> HybridLM:
        model = HybridLM.build(make_architecture(**changes), dtype=torch.float64, seed=1)
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 2:
                    parameter.mul_(scale)
                else:
                    parameter.mul_(1 + 0.3 * torch.randn(parameter.shape, generator=generator).to(parameter))
            for name, parameter in model.named_parameters():
                if name.endswith(".bias"):
                    parameter.normal_(generator=generator)
                if name == "meta_tokens":
                    parameter.div_(scale)
        return model

    return make


@pytest.fixture
def tokens_BT():
    return torch.randint(50, (2, 40), generator=torch.Generator().manual_seed(3))
