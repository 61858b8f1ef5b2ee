import pytest
import torch

from flashslm.models.architecture import Architecture
from flashslm.models.hybrid import HybridLM
from tests.unit.tiny_hybrid import tiny_hybrid


@pytest.fixture
def architecture() -> Architecture:
    return tiny_hybrid()


@pytest.fixture
def model(architecture) -> HybridLM:
    """fp64, so that an argmax does not hang on rounding; weights large enough for varied continuations."""
    model = HybridLM.build(architecture, dtype=torch.float64, seed=1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and name != "meta_tokens":
                parameter.mul_(8)
    return model
