"""What is said of a benchmark before it begins on a CPU."""

import dataclasses

import pytest

from flashslm.benchmarking import estimate
from flashslm.benchmarking.case import Case
from flashslm.benchmarking.training_steps import TrainingCase
from flashslm.models.accounting import parameters
from flashslm.models.presets import PRESETS

LARGE = PRESETS["nemotron-flash-1b"]
DECODE = Case("large", LARGE, context=1024, new_tokens=256, batch=1, device="cpu", dtype="float32")


def test_a_large_model_on_a_cpu_is_announced_in_minutes() -> None:
    text = estimate.warning(DECODE)
    assert text.startswith("on this CPU a benchmark of ") and " minutes: a GPU, a smaller model" in text
    training = TrainingCase("large", LARGE, 4096, 8, 30, "cpu", "float32")
    assert " minutes: " in estimate.warning(training)


def test_on_a_gpu_nothing_is_said_and_nothing_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "flops_per_s", lambda _: pytest.fail("measured"))
    assert estimate.warning(dataclasses.replace(DECODE, device="cuda")) == ""


def test_seconds_are_not_worth_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "flops_per_s", lambda _: 1e15)
    monkeypatch.setattr(estimate, "bytes_per_s", lambda: 1e15)
    assert estimate.warning(DECODE) == ""


def test_the_estimate_is_the_work_over_the_speed() -> None:
    weights = parameters(LARGE)["total"]
    bound_by_memory = estimate.decode_s(DECODE, 1e30, 1e9)
    assert bound_by_memory == pytest.approx(4 * 256 * DECODE.bytes_per_token / 1e9)
    bound_by_arithmetic = estimate.decode_s(DECODE, 1e9, 1e30)
    assert bound_by_arithmetic == pytest.approx(4 * (256 + 1024) * 2 * weights / 1e9)
    training = TrainingCase("large", LARGE, 4096, 8, 30, "cpu", "float32")
    assert estimate.training_s(training, 1e9) == pytest.approx(2 * 33 * 8 * 4096 * training.flops_per_token / 1e9)
