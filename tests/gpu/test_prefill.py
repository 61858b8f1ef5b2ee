"""Prefill by captured graphs equals the forward in fp32 at any length of prompt, and so do the steps after it."""

import pytest
import torch

from flashslm.config import ModelConfig
from flashslm.inference.engine import DecodeEngine
from flashslm.inference.prefill import GRAPH_TOKENS
from flashslm.models.architecture import build_architecture
from flashslm.models.hybrid import HybridLM
from flashslm.ops.gates import gated_norm_naive, swiglu_naive
from flashslm.ops.gradient_check import relative_error

pytestmark = pytest.mark.gpu
VOCABULARY = 1003
TOLERANCE = 1e-2


def build(operators: str) -> tuple[HybridLM, HybridLM]:
    """A model in bf16, and the same weights in fp32."""
    config = ModelConfig(head_dim=64, num_meta_tokens=7)
    architecture = build_architecture(operators, 256, config, VOCABULARY)
    model = HybridLM.build(architecture, "cuda", torch.bfloat16, seed=1)
    exact = HybridLM.build(architecture, "cuda", torch.float32)
    exact.load_state_dict({name: tensor.float() for name, tensor in model.state_dict().items()})
    return model, exact


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("operators", ["DFMFAF", "AFAF", "DMA"])
def test_prompts_of_any_length_and_the_steps_after_them(operators: str, batch: int) -> None:
    """A padded length comes up again and again: recorded, replayed behind a longer prompt, and full."""
    model, exact = build(operators)
    engine = DecodeEngine(model, batch, 700)
    assert engine.prefills[batch].uses_graphs
    for length in (1, 2, 70, 127, 65, 128, 257, 600, 258):
        tokens_BT = torch.randint(VOCABULARY, (batch, length + 4), device="cuda")
        with torch.inference_mode():
            expected_BTV = exact.logits(exact(tokens_BT))
        engine.prefill(tokens_BT[:, :length].cpu())
        prefilled = engine.prefills[batch].logits_BV
        assert relative_error(prefilled, expected_BTV[:, length - 1]) < 0.05
        for place in range(length, length + 4):
            engine.tokens_B.copy_(tokens_BT[:, place])
            engine.advance()
            assert relative_error(engine.logits_BV, expected_BTV[:, place]) < 0.05
    assert set(engine.prefills[batch].graphs) == {64, 128, 320, 640}


def test_long_prompts_run_in_chunks() -> None:
    model, exact = build("DFMFAF")
    engine = DecodeEngine(model, 1, GRAPH_TOKENS + 500)
    tokens_BT = torch.randint(VOCABULARY, (1, GRAPH_TOKENS + 300), device="cuda")
    with torch.inference_mode():
        expected_BV = exact.logits(exact(tokens_BT)[:, -1])
    with torch.inference_mode():
        actual_BV = engine.prefills[1](tokens_BT)
    assert not engine.prefills[1].graphs
    assert relative_error(actual_BV, expected_BV) < 0.05


@pytest.mark.parametrize("size", [48, 1000, 3072])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_swiglu(size: int, dtype: torch.dtype) -> None:
    from flashslm.ops.fused.gates import swiglu_triton

    gate_up = torch.randn(2, 37, 2 * size, device="cuda").to(dtype)
    assert relative_error(swiglu_triton(gate_up), swiglu_naive(gate_up.double())) < TOLERANCE


@pytest.mark.parametrize("size", [48, 1000, 4096])
@pytest.mark.parametrize("weight_dtype", [torch.bfloat16, torch.float32])
def test_gated_norm_of_slices(size: int, weight_dtype: torch.dtype) -> None:
    from flashslm.ops.fused.gates import gated_norm_triton

    y = torch.randn(2, 37, size, device="cuda").bfloat16()
    z = torch.randn(2, 37, size + 24, device="cuda").bfloat16()[..., :size]
    weight = (torch.rand(size, device="cuda") + 0.5).to(weight_dtype)
    expected = gated_norm_naive(y.double(), z.double(), weight.double(), 1e-5)
    assert relative_error(gated_norm_triton(y, z, weight, 1e-5), expected) < TOLERANCE
