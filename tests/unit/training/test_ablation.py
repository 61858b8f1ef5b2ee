"""The ablation's statistics against hand-computed ones."""

import pytest

from flashslm.training.ablation import VariantRun, choose_deployed, compare


def make_run(weight_norm: str, seed: int, loss: float, step_time_ms: float = 10.0) -> VariantRun:
    rows = [
        {"step": 0, "loss_nats": 5.0, "step_time_ms": step_time_ms, "weight_norm": 1.0, "gradient_norm": 2.0},
        {"step": 10, "loss_nats": 4.0, "step_time_ms": step_time_ms, "weight_norm": 1.5, "gradient_norm": 1.0},
        {"step": 10, "validation_loss_nats": loss},
    ]
    return VariantRun(weight_norm=weight_norm, seed=seed, validation_loss_nats=loss, history=rows)


def test_difference_is_paired_by_seed() -> None:
    runs = [
        make_run("on", 0, 3.0, 11.0),
        make_run("on", 1, 3.2, 11.0),
        make_run("off", 0, 3.1),
        make_run("off", 1, 3.4),
    ]
    ablation = compare(runs)
    assert ablation.difference_nats == pytest.approx(-0.15)
    assert ablation.difference_spread_nats == pytest.approx(0.0707107, rel=1e-5)
    assert ablation.step_time_increase == pytest.approx(0.1)
    on, off = ablation.variants
    assert (on.validation_loss_nats, off.validation_loss_nats) == pytest.approx((3.1, 3.25))
    assert on.final_weight_norm == 1.5 and on.final_gradient_norm == 1.0
    assert ablation.curves["on, seed 0"]["validation_loss_nats"] == [(10, 3.0)]
    assert ablation.verdict.startswith("weight_norm=on is better by 0.1500 nats")


def test_difference_within_the_spread_is_a_tie() -> None:
    runs = [make_run("on", 0, 3.0), make_run("on", 1, 3.4), make_run("off", 0, 3.1), make_run("off", 1, 3.2)]
    assert compare(runs).verdict.startswith("tie: difference +0.0500 nats")


def test_one_seed_makes_no_claim() -> None:
    ablation = compare([make_run("on", 0, 3.0), make_run("off", 0, 3.5)])
    assert "no claim" in ablation.verdict and ablation.variants[0].spread_nats is None


def test_one_variant_has_nothing_to_compare_with() -> None:
    ablation = compare([make_run("on", 0, 3.0)])
    assert ablation.difference_nats is None and ablation.step_time_increase is None


def test_deployed_run_is_of_the_better_variant_on_average() -> None:
    runs = [make_run("on", 0, 3.0), make_run("on", 1, 3.9), make_run("off", 0, 3.2), make_run("off", 1, 3.3)]
    assert choose_deployed(runs, "best") is runs[2]
    assert choose_deployed(runs, "on") is runs[0]
