"""A small model of every operator, in fp64, with weights large enough for each operator to matter."""

import pytest
import torch

from flashslm.models.hybrid import HybridLM
from tests.unit.tiny_hybrid import tiny_hybrid


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def make_architecture():
    """`make_architecture(operators="DF", …)`: `tiny_hybrid` of every operator, with changes."""
    return lambda **changes: tiny_hybrid(**({"operators": "DFMFAFGLW", "window": 7} | changes))


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
