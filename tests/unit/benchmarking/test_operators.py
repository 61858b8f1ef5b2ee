"""The parts of a decode step."""

from types import SimpleNamespace

import pytest
import torch

from flashslm.benchmarking import operators


@pytest.fixture
def built(monkeypatch):
    """What was built; a layer takes 2 ms, the head 5."""
    calls = []

    def build_operator_step(architecture, operator, batch, context, device, dtype, *, copies, weights):
        calls.append((operator, copies, batch, context, architecture.vocab_size, weights))
        return 2.0 * copies

    monkeypatch.setattr(operators, "build_operator_step", build_operator_step)
    monkeypatch.setattr(operators, "build_head_step", lambda *arguments, weights: {"full": 5.0, "int8": 3.0}[weights])
    monkeypatch.setattr(operators, "measure", lambda step, *arguments: SimpleNamespace(median_ms=step))
    return calls


def test_all_layers_of_a_kind_together(built, make_case):
    times = operators.operator_times_ms(make_case())
    assert times == {"deltanet": 2.0, "mamba2": 2.0, "attention": 2.0, "ffn": 6.0, "head": 5.0}
    assert ("F", 3, 2, 23, 2, "full") in built and ("D", 1, 2, 23, 2, "full") in built


def test_weights_of_8_bits_in_every_part(built, make_case):
    assert operators.operator_times_ms(make_case(weights="int8"))["head"] == 3.0
    assert {weights for *_, weights in built} == {"int8"}


def test_a_gpu_s_cache_is_outgrown_without_counting_more_layers(built, make_case, monkeypatch):
    l2 = SimpleNamespace(L2_cache_size=10_000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: l2)
    times = operators.operator_times_ms(make_case(device="cuda"))
    copies = {operator: number for operator, number, *_ in built}
    ffn_bytes = 4 * (3 * 32 * 48 + 32 + 32 + 2 * 32)  # weights, its norm, the final norm, the vocabulary of two
    assert copies["F"] == 3 * -(-20_000 // (3 * ffn_bytes)) > 3 - 1
    assert copies["F"] * ffn_bytes >= 20_000
    assert times["ffn"] == pytest.approx(6.0) and times["attention"] == pytest.approx(2.0)


def test_shares_are_of_the_whole_step():
    shares = operators.shares({"ffn": 2.0, "head": 1.0}, 4.0)
    assert shares == pytest.approx({"ffn": 0.5, "head": 0.25, "residual": 0.25})
    assert operators.shares({"ffn": 5.0}, 4.0)["residual"] == pytest.approx(-0.25)
