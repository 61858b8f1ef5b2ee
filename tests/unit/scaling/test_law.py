import numpy as np
import pytest

from flashslm.scaling.holdout import leave_out_sizes
from flashslm.scaling.law import NAMES, DepthWidthLaw, ScalingPoint, fit_law
from flashslm.training.side_by_side import worker_pool

TRUTH = {"L0": 1.8, "a": 2.0, "alpha": 0.8, "b": 40.0, "beta": 0.6, "c": 300.0, "gamma": 0.4, "kappa": 0.0}
DEPTHS, WIDTHS, TOKENS = (2, 4, 8, 16), (128, 256, 512, 1024), (10**6, 4 * 10**6, 16 * 10**6, 64 * 10**6)


def loss(depth: float, width: float, tokens: float) -> float:
    t = TRUTH
    return t["L0"] + t["a"] / depth ** t["alpha"] + t["b"] / width ** t["beta"] + t["c"] / tokens ** t["gamma"]


def make_points(
    noise: float = 0.0, run_noise: float = 0.0, seed: int = 0, depths=DEPTHS, widths=WIDTHS, tokens=TOKENS
) -> list[ScalingPoint]:
    """The grid with independent noise on every point and a common one on the points of a run (nats)."""
    rng = np.random.default_rng(seed)
    points = []
    for depth, width in ((d, w) for d in depths for w in widths):
        luck = run_noise * rng.normal()
        for n in tokens:
            measured = loss(depth, width, n) + luck + noise * rng.normal()
            points.append(ScalingPoint(depth=depth, width=width, tokens=n, loss_nats=measured))
    return points


def test_exact_points_give_the_constants_back() -> None:
    law = fit_law(make_points(), bootstrap=10)
    assert law.constants == pytest.approx(TRUTH, rel=1e-6, abs=1e-9)
    assert law.unidentified == () and law.num_points == 64
    assert law.residual_std_nats < 1e-9
    assert law.predict(12, 2048, 10**9) == pytest.approx(loss(12, 2048, 10**9))


def with_kappa(points: list[ScalingPoint], kappa: float, size: float, tokens: float) -> list[ScalingPoint]:
    """The points, with the tokens' exponent growing by `kappa` for each e-fold of depth x width²."""

    def changed(point: ScalingPoint) -> ScalingPoint:
        term = TRUTH["c"] / point.tokens ** TRUTH["gamma"]
        power = -kappa * np.log(point.depth * point.width**2 / size)
        more = term * ((point.tokens / tokens) ** power - 1)
        return point.model_copy(update={"loss_nats": point.loss_nats + more})

    return [changed(point) for point in points]


def test_larger_models_may_gain_more_from_tokens() -> None:
    """Exact points of such a law give its constants back, and predict a larger model after more tokens."""
    center = (np.sqrt(2 * 16) * 128 * 1024, 8.0 * 10**6)  # geometric means of the grid's D·W² and tokens
    law = fit_law(with_kappa(make_points(), 0.03, *center), bootstrap=10)
    assert law.constants == pytest.approx(TRUTH | {"kappa": 0.03}, rel=1e-5)
    assert (law.reference_size, law.reference_tokens) == pytest.approx(center)
    larger = make_points(depths=(24,), widths=(1536,), tokens=(10**8,))
    assert law.perplexity_error(with_kappa(larger, 0.03, *center)) < 1e-6 < law.perplexity_error(larger)


@pytest.mark.parametrize("grid", [{"tokens": TOKENS[:2]}, {"depths": (4,)}, {"widths": (256,)}], ids=str)
def test_two_token_counts_or_one_size_of_an_axis_give_the_papers_law(grid: dict[str, tuple[int, ...]]) -> None:
    law = fit_law(make_points(**grid), bootstrap=5)
    assert law.constants["kappa"] == 0 and "kappa" in law.unidentified
    assert law.predict(4, 256, 10**6) == pytest.approx(loss(4, 256, 10**6))


def test_noisy_points_recover_the_constants_and_the_noise() -> None:
    law = fit_law(make_points(noise=0.01), bootstrap=50)
    for name, tolerance in zip(NAMES, (0.03, 0.03, 0.05, 0.1, 0.05, 0.3, 0.05, 0.0), strict=True):
        assert law.constants[name] == pytest.approx(TRUTH[name], rel=tolerance, abs=0.005), name
    assert law.residual_std_nats == pytest.approx(0.01, rel=0.2)


@pytest.mark.parametrize("replicates", [19, 50])
def test_an_interval_holds_a_further_draw_as_often_as_it_says(replicates: int) -> None:
    """Draws at the expected places of `replicates` uniform ones: the middle 90 % goes from 0.05 to 0.95."""
    draws = tuple({"L0": (k + 1) / (replicates + 1)} for k in range(replicates))
    assert DepthWidthLaw.model_construct(replicates=draws).constant_interval("L0") == pytest.approx((0.05, 0.95))


@pytest.mark.parametrize(("noise", "run_noise"), [(0.01, 0.0), (0.003, 0.01)], ids=["points", "runs"])
def test_intervals_cover_the_truth(noise: float, run_noise: float) -> None:
    """90 % intervals of each constant and of an extrapolation, over 20 draws; also when a run's points err together."""
    covered, trials = 0, 0
    for seed in range(20):
        law = fit_law(make_points(noise, run_noise, seed), bootstrap=19, seed=seed)  # the fewest that span 90 %
        low, high = law.interval(32, 2048, 256 * 10**6)
        covered += low <= loss(32, 2048, 256 * 10**6) <= high
        for name in NAMES:
            low, high = law.constant_interval(name)
            covered += low <= TRUTH[name] <= high
        trials += 1 + len(NAMES)
    assert 0.8 <= covered / trials <= 0.99


def test_intervals_nest_and_shrink_with_the_noise() -> None:
    noisy, quiet = (fit_law(make_points(noise=n), bootstrap=40) for n in (0.02, 0.002))
    wide, narrow = noisy.interval(12, 512, 10**7), noisy.interval(12, 512, 10**7, level=0.5)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    low, high = quiet.interval(12, 512, 10**7)
    assert high - low < 0.3 * (wide[1] - wide[0])


def test_perplexity_error_is_the_worst_held_out_point() -> None:
    law = fit_law(make_points(), bootstrap=10)
    held_out = [
        ScalingPoint(depth=24, width=1536, tokens=10**7, loss_nats=loss(24, 1536, 10**7) + off)
        for off in (0.0, 0.02, -0.05)
    ]
    assert law.perplexity_error(held_out) == pytest.approx(np.exp(0.05) - 1)
    with pytest.raises(ValueError, match="at least one"):
        law.perplexity_error([])


def test_a_run_that_went_astray_does_not_bend_the_law() -> None:
    """Least squares would be off by 0.02 nats and more where this is off by a tenth of that."""
    points = make_points(noise=0.002)
    astray = [p.model_copy(update={"loss_nats": p.loss_nats + 0.5}) for p in points if (p.depth, p.width) == (16, 1024)]
    kept = [p for p in points if (p.depth, p.width) != (16, 1024)]
    law = fit_law([*kept, *astray], bootstrap=10)
    for depth, width in ((16, 1024), (16, 512), (4, 1024)):
        assert law.predict(depth, width, TOKENS[-1]) == pytest.approx(loss(depth, width, TOKENS[-1]), abs=0.005)


def test_the_law_knows_what_it_was_fitted_to() -> None:
    law = fit_law(make_points(), bootstrap=10)
    assert law.extrapolated_axes(2, 1024, 10**6) == ()
    assert law.extrapolated_axes(1, 1025, 10**6) == ("depth", "width")
    assert law.extrapolated_axes(8, 512, 10**9) == ("tokens",)


def test_an_axis_without_variation_is_part_of_the_floor() -> None:
    law = fit_law(make_points(tokens=(10**7,)), bootstrap=10)
    assert law.unidentified == ("c", "gamma", "kappa") and law.constants["c"] == 0
    assert law.constants["L0"] == pytest.approx(TRUTH["L0"] + TRUTH["c"] / (10**7) ** TRUTH["gamma"])
    assert law.predict(8, 512, 10**7) == pytest.approx(loss(8, 512, 10**7))


def test_two_values_of_an_axis_do_not_determine_its_term() -> None:
    law = fit_law(make_points(noise=0.003, depths=(4, 8)), bootstrap=20)
    assert {"a", "alpha"} <= set(law.unidentified) and "beta" not in law.unidentified
    assert law.predict(4, 512, 10**7) == pytest.approx(loss(4, 512, 10**7), abs=0.02)


def test_an_axis_without_effect_is_named() -> None:
    """Losses that do not depend on depth: the fitted term is noise, its interval ends at a bound."""
    rng = np.random.default_rng(0)
    points = [
        p.model_copy(update={"loss_nats": loss(8, p.width, p.tokens) + 0.005 * rng.normal()}) for p in make_points()
    ]
    law = fit_law(points, bootstrap=30)
    assert {"a", "alpha"} <= set(law.unidentified)
    assert law.predict(30, 512, 10**7) == pytest.approx(loss(8, 512, 10**7), abs=0.02)


def test_too_few_points_are_refused() -> None:
    with pytest.raises(ValueError, match="8 points for a law of 8 constants: give at least 9"):
        fit_law(make_points()[:3] + make_points()[17:19] + make_points()[40:43])


def test_json_round_trip_and_repeatability() -> None:
    law = fit_law(make_points(noise=0.01), bootstrap=10, seed=3)
    assert DepthWidthLaw.model_validate_json(law.model_dump_json()) == law
    assert fit_law(make_points(noise=0.01), bootstrap=10, seed=3) == law


def test_processes_fit_the_same_law_to_the_bit() -> None:
    points = make_points(noise=0.01, depths=(2, 4, 8), widths=(128, 256), tokens=TOKENS[:3])
    with worker_pool(2) as pool:
        law, left_out = fit_law(points, 10, 3, pool.map), leave_out_sizes(points, 3, pool.map)
    assert law == fit_law(points, 10, 3)
    assert left_out == leave_out_sizes(points, 3) and len(left_out) == 2
