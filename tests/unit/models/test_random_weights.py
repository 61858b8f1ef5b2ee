import pytest
import torch

from flashslm.config import ModelConfig
from flashslm.models.architecture import build_architecture
from flashslm.models.hybrid import HybridLM
from flashslm.models.operator_spec import OPERATORS
from flashslm.models.random_weights import random_model

SIZES = ModelConfig(head_dim=16, mamba_state=16, mamba_head_dim=16, num_meta_tokens=2, qk_norm=True)
ARCHITECTURE = build_architecture(OPERATORS, 64, SIZES, 300)


def test_shapes_and_dtypes_are_those_of_an_initial_model():
    found, expected = (
        random_model(ARCHITECTURE, "cpu", torch.bfloat16),
        HybridLM.build(ARCHITECTURE, "cpu", torch.bfloat16),
    )
    facts = [{n: (p.shape, p.dtype) for n, p in model.named_parameters()} for model in (found, expected)]
    assert facts[0] == facts[1]
    assert {n.split(".")[-1] for n, (_, dtype) in facts[0].items() if dtype == torch.float32} == {
        "A_log",
        "dt_bias",
        "D",
    }


@pytest.mark.parametrize("std", [0.02, 0.5])
def test_every_value_is_drawn(std):
    model = random_model(ARCHITECTURE, "cpu", torch.float32, std)
    for name, parameter in model.named_parameters():
        assert not parameter.requires_grad
        if name.endswith("norm.weight"):
            assert (parameter == 1).all(), name
        elif parameter.numel() > 1000:
            assert parameter.std().item() == pytest.approx(std, rel=0.15), name
        else:
            assert parameter.isfinite().all() and parameter.abs().max() < 6 * std and parameter.any(), name


def test_it_decodes_as_any_model():
    model = random_model(ARCHITECTURE, "cpu", torch.float32, std=0.3)
    twin = HybridLM.build(ARCHITECTURE)
    twin.load_state_dict(model.state_dict())
    tokens_BT = torch.randint(300, (2, 9))
    torch.testing.assert_close(model(tokens_BT), twin(tokens_BT))
