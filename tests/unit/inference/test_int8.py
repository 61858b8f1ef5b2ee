"""Weights of 8 bits: their rounding, what a model loses by it, and the engine that decodes with them."""

import math

import pytest
import torch

from flashslm.inference.engine import DecodeEngine
from flashslm.inference.int8_model import round_to_int8
from flashslm.models.architecture import build_architecture
from flashslm.models.hybrid import HybridLM
from flashslm.ops.int8_weights import quantise_rows
from tests.unit.training.tiny import SIZES


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows, size", [(1, 1), (7, 33), (64, 128)])
def test_a_value_is_off_by_half_a_step_of_its_row_at_most(rows: int, size: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight = (torch.randn(rows, size) * torch.logspace(-6, 3, rows)[:, None]).to(dtype)
    quantised = quantise_rows(weight)
    assert quantised.values_RD.dtype == torch.int8 and quantised.values_RD.abs().amax(1).tolist() == [127] * rows
    errors = (quantised.dequantised() - weight.float()).abs()
    assert (errors <= quantised.scales_R[:, None] * 0.5001).all()


def test_rows_of_zeros() -> None:
    assert torch.equal(quantise_rows(torch.zeros(2, 5)).dequantised(), torch.zeros(2, 5))


def test_rounding_twice_is_rounding_once() -> None:
    """So that kernels which quantise a rounded matrix compute with the same whole numbers; nearly so through bf16."""
    torch.manual_seed(0)
    first = quantise_rows(torch.randn(200, 500))
    assert torch.equal(first.values_RD, quantise_rows(first.dequantised()).values_RD)
    rounded = first.dequantised().bfloat16()
    second = quantise_rows(rounded)
    off = (first.values_RD - second.values_RD).abs()
    assert off.max() <= 1 and off.float().mean() < 0.01
    assert (second.dequantised() - rounded.float()).norm() < 2**-8 * rounded.float().norm()


def trained_model() -> tuple[HybridLM, torch.Tensor, torch.Tensor]:
    """A model that has learned a language of 61 words, each with four successors, and two texts in it."""
    generator = torch.Generator().manual_seed(3)
    successors = torch.randint(61, (61, 4), generator=generator)

    def texts(count: int) -> torch.Tensor:
        tokens = [torch.randint(61, (count,), generator=generator)]
        for _ in range(48):
            tokens.append(successors[tokens[-1], torch.randint(4, (count,), generator=generator)])
        return torch.stack(tokens, dim=1)

    model = HybridLM.build(build_architecture("DFMFAF", 64, SIZES, 61), seed=5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(120):
        batch_BT = texts(16)
        optimizer.zero_grad()
        model.loss(batch_BT[:, :-1], batch_BT[:, 1:]).backward()
        optimizer.step()
    test_BT = texts(32)
    return model.eval(), test_BT[:, :-1], test_BT[:, 1:]


def test_perplexity_stays_within_half_a_per_cent() -> None:
    model, tokens_BT, targets_BT = trained_model()
    with torch.no_grad():
        before = model.loss(tokens_BT, targets_BT).exp().item()
        after = round_to_int8(model).loss(tokens_BT, targets_BT).exp().item()
    assert before < 10  # of 61 words
    assert before != after and math.isclose(before, after, rel_tol=5e-3)


def test_the_engine_decodes_what_the_rounded_model_says(model: HybridLM) -> None:
    prompts_BT = torch.randint(50, (3, 9), generator=torch.Generator().manual_seed(4))
    full = DecodeEngine(model, 3, 40).generate(prompts_BT, 25)
    tokens = DecodeEngine(model, 3, 40, weights="int8").generate(prompts_BT, 25)
    expected = model.logits(model(torch.cat([prompts_BT, tokens], dim=1))).argmax(-1)  # the engine rounds the model
    assert torch.equal(tokens, expected[:, 8:-1])
    assert torch.equal(quantise_rows(model.embedding.weight).dequantised().double(), model.embedding.weight)
    assert not torch.equal(tokens, full)
