"""Latency in rounds beside the reference: what a busy machine does to it, and what the real engine gives."""

import math
from collections.abc import Callable

import pytest
from scipy import stats

from flashslm.config import ModelConfig, ProfilingConfig
from flashslm.models.architecture import build_architecture
from flashslm.profiling import beside_reference
from flashslm.profiling.beside_reference import measure_beside_reference, summarise, time_rounds
from flashslm.profiling.measure import ModelPoint

SIZES = ModelConfig(head_dim=8, kv_group=2, ffn_ratio=2, mamba_state=8, mamba_head_dim=8, num_meta_tokens=0)
STEADY = [[1.0 + 0.001 * (i % 3)] * 2 for i in range(10)]
REFERENCE = [[0.5 + 0.0005 * (i % 2)] * 2 for i in range(10)]


def test_the_interval_is_students_over_the_rounds() -> None:
    found = summarise(STEADY, REFERENCE)
    ratios = [math.log(a[0] / b[0]) for a, b in zip(STEADY, REFERENCE, strict=True)]
    low, high = stats.t.interval(0.95, 9, loc=sum(ratios) / 10, scale=stats.sem(ratios))
    assert (found.over_reference_low, found.over_reference_high) == pytest.approx((math.exp(low), math.exp(high)))
    assert found.p10_ms <= found.median_ms <= found.p90_ms and found.low_ms < found.median_ms < found.high_ms
    assert found.drift == pytest.approx(0.001) and found.reference_ms == pytest.approx(0.50025)


def test_a_machine_that_slows_down_is_seen_and_its_ratio_stays() -> None:
    slow = [1.0, 1.0, 1.0, 1.5, 1.5, 1.5, 2.0, 2.0, 1.2, 1.0]
    found = summarise(
        [[s * f for s in samples] for samples, f in zip(STEADY, slow, strict=True)],
        [[s * f for s in samples] for samples, f in zip(REFERENCE, slow, strict=True)],
    )
    calm = summarise(STEADY, REFERENCE)
    assert found.drift > 0.9 and found.high_ms / found.low_ms > 1.3
    assert found.over_reference == pytest.approx(calm.over_reference)
    assert found.over_reference_high == pytest.approx(calm.over_reference_high)


def test_every_round_has_every_step_in_an_order_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []

    def samples(step, warmup, repeats, device):
        step()
        return [1.0] * repeats

    monkeypatch.setattr(beside_reference, "samples_ms", samples)
    found = time_rounds([lambda: called.append("a"), lambda: called.append("b")], 1, 25, "cpu")
    rounds = [called[i : i + 2] for i in range(0, len(called), 2)]
    assert len(rounds) == 10 and all(sorted(pair) == ["a", "b"] for pair in rounds)
    assert ["a", "b"] in rounds and ["b", "a"] in rounds
    assert [len(samples) for samples in found[0]] == [3] * 10


def test_the_reference_keeps_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a model in 8 bits could not be compared with a champion that is not."""
    built: list[tuple[int, str]] = []

    def build(point: ModelPoint, config: ProfilingConfig) -> Callable[[], None]:
        built.append((point.architecture.hidden_size, config.weights))
        return lambda: None

    monkeypatch.setattr(beside_reference, "build_model_step", build)
    point = ModelPoint(build_architecture("DF", 32, SIZES, 64), 16, 1)
    measure_beside_reference(point, ProfilingConfig(device="cpu", repeats=3, weights="int8"))
    assert built == [(32, "int8"), (128, "full")]


def test_the_engine_is_measured_and_a_deeper_model_takes_longer() -> None:
    config = ProfilingConfig(device="cpu", warmup=1, repeats=20)
    short, deep = (
        measure_beside_reference(ModelPoint(build_architecture(operators, 32, SIZES, 64), 16, 1), config)
        for operators in ("DF", "DF" * 12)
    )
    assert deep.over_reference > 2 * short.over_reference and short.rounds == 10
    facts = short.facts()
    assert facts["latency_ms"] > 0 and facts["reference_latency_ms"] > 0
    assert {"latency_p10_ms", "latency_p90_ms", "latency_low_ms", "latency_high_ms", "latency_drift"} <= set(facts)
