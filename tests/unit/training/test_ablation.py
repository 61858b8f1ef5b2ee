"""The ablation's statistics against hand-computed ones."""

import pytest

from flashslm.config import TrainingConfig
from flashslm.training.ablation import DivergedRun, VariantRun, choose_deployed, compare, step_times


def make_run(weight_norm: str, seed: int, loss: float, step_time_ms: float = 10.0) -> VariantRun:
    rows = [
        {"step": 0, "train/loss_nats": 5.0, "weight_norm": 1.0, "gradient_norm": 2.0},
        {"step": 10, "train/loss_nats": 4.0, "weight_norm": 1.5, "gradient_norm": 1.0},
        {"step": 10, "validation/loss_nats": loss},
    ]
    results = {"weight_norm": weight_norm, "seed": seed, "validation_loss_nats": loss}
    return VariantRun.model_validate(results | {"step_time_ms": step_time_ms, "history": rows})


def test_difference_is_paired_by_seed() -> None:
    runs = [
        make_run("on", 0, 3.0, 11.0),
        make_run("on", 1, 3.2, 11.0),
        make_run("off", 0, 3.1),
        make_run("off", 1, 3.4),
    ]
    ablation = compare(runs)
    assert ablation.difference_nats == pytest.approx(-0.15)
    # Student's t of one degree of freedom: 12.7062 standard errors of 0.05
    assert ablation.difference_interval_nats == pytest.approx((-0.15 - 0.63531, -0.15 + 0.63531), rel=1e-5)
    assert ablation.differences_nats == pytest.approx({0: -0.1, 1: -0.2})
    assert step_times(runs).step_time_increase == pytest.approx(0.1)
    assert step_times(runs).step_time_ms == {"on": 11.0, "off": 10.0}
    on, off = ablation.variants
    assert (on.validation_loss_nats, off.validation_loss_nats) == pytest.approx((3.1, 3.25))
    assert on.final_weight_norm == 1.5 and on.final_gradient_norm == 1.0
    assert ablation.curves["on, seed 0"]["validation/loss_nats"] == [(10, 3.0)]
    assert ablation.verdict == (
        "cannot tell: difference -0.1500 nats, 95 % interval -0.7853 to +0.4853 over 2 seeds, all of the "
        "same sign; more seeds would narrow it"
    ), "1.96 standard errors would have called this a gain"


def test_a_difference_beyond_the_interval_is_a_claim() -> None:
    runs = [make_run("on", seed, 3.0 + 0.001 * seed) for seed in range(3)] + [
        make_run("off", seed, 3.2 - 0.001 * seed) for seed in range(3)
    ]
    assert compare(runs).verdict == (
        "weight_norm=on is better by 0.1980 nats, 95 % interval -0.2030 to -0.1930 over 3 seeds"
    )


def test_a_difference_within_the_spread_cannot_tell() -> None:
    runs = [make_run("on", 0, 3.0), make_run("on", 1, 3.4), make_run("off", 0, 3.1), make_run("off", 1, 3.2)]
    verdict = compare(runs).verdict
    assert verdict.startswith("cannot tell: difference +0.0500 nats") and verdict.endswith("over 2 seeds")


def test_one_seed_makes_no_claim() -> None:
    ablation = compare([make_run("on", 0, 3.0), make_run("off", 0, 3.5)])
    assert "no claim" in ablation.verdict and ablation.variants[0].spread_nats is None


def test_one_variant_has_nothing_to_compare_with() -> None:
    runs = [make_run("on", 0, 3.0)]
    assert compare(runs).difference_nats is None and step_times(runs).step_time_increase is None


def test_deployed_run_is_of_the_better_variant_on_average_and_of_the_recipes_seed() -> None:
    runs = [make_run("on", 0, 3.0), make_run("on", 1, 3.9), make_run("off", 0, 3.2), make_run("off", 1, 3.3)]
    assert choose_deployed(runs, "best", seed=1) is runs[3], "not the seed of lowest loss"
    assert choose_deployed(runs, "best", seed=0) is runs[2]
    assert choose_deployed(runs, "on", seed=1) is runs[1]


def test_variants_are_compared_for_deployment_on_the_seeds_that_both_have() -> None:
    """With weight normalisation every seed is better by 0.1; without it the hardest seed diverged."""
    runs = [make_run("on", 0, 3.0), make_run("on", 1, 3.6), make_run("off", 0, 3.1)]
    assert compare(runs).difference_nats == pytest.approx(-0.1)
    assert choose_deployed(runs, "best", seed=0) is runs[0], "not 3.3 over two seeds against 3.1 over one"


def test_the_deployed_seed_is_one_of_the_seeds() -> None:
    assert TrainingConfig(seeds=(3, 1)).deployed_seed == 3
    assert TrainingConfig(seeds=(3, 1), deploy_seed=1).deployed_seed == 1
    with pytest.raises(ValueError, match=r"deploy_seed is 7: allowed are the values of seeds, \[3, 1\]"):
        TrainingConfig(seeds=(3, 1), deploy_seed=7)


def test_a_run_that_diverged_is_named_and_in_no_mean() -> None:
    lost = DivergedRun(weight_norm="off", seed=1, reason="the gradient is not finite in 21 steps")
    ablation = compare([make_run("on", 0, 3.0), make_run("on", 1, 3.2), make_run("off", 0, 3.1)], [lost])
    assert ablation.difference_nats == pytest.approx(-0.1) and ablation.variants[1].seeds == [0]
    assert ablation.verdict.startswith("weight_norm=off, seed 1 diverged; weight_norm=on is 0.1000 nats better")
    assert ablation.diverged == [lost]


def test_a_deployed_variant_that_diverged_in_every_run_is_an_error_with_its_reason() -> None:
    lost = DivergedRun(weight_norm="off", seed=0, reason="the gradient is not finite in 21 steps")
    runs = [make_run("on", 0, 3.0)]
    assert choose_deployed(runs, "best", 0, [lost]) is runs[0]
    with pytest.raises(ValueError, match="deploy=off and seed 0 is left: weight_norm=off, seed 0: the gradient"):
        choose_deployed(runs, "off", 0, [lost])
    with pytest.raises(ValueError, match="deploy=best and seed 0"):
        choose_deployed([], "best", 0, [lost])
