import random

import pytest

from flashslm.profiling.overhead import Overhead, Sample, fit_overhead, left_out_errors


def samples(step_ms, layer_ms, noise=0.0, factor=1.0, number=8):
    rng = random.Random(2)
    made = []
    for _ in range(number):
        summed_ms, layers = rng.uniform(0.1, 2.0), rng.randint(4, 30)
        exact = factor * summed_ms + step_ms + layer_ms * layers
        made.append(Sample(exact * (1 + noise * rng.uniform(-1, 1)), summed_ms, layers))
    return made


def test_both_terms_are_found():
    assert fit_overhead(samples(0.01, -0.002)) == pytest.approx((0.01, -0.002, 0.0))


def test_one_term_suffices_where_layers_cost_nothing():
    found = fit_overhead(samples(0.02, 0.0))
    assert found == pytest.approx((0.02, 0.0, 0.0)) and found.layer_ms == 0.0


def test_the_term_for_the_cache_is_taken_where_it_predicts_better():
    """Models that lack up to 40 MB to fill the cache are 0.002 ms faster for each."""
    made = [
        s._replace(short_mb=short, measured_ms=s.measured_ms - 0.002 * short)
        for s, short in zip(samples(0.2, 0.0), (0, 5, 10, 0, 20, 40, 30, 0), strict=True)
    ]
    assert fit_overhead(made) == pytest.approx((0.2, 0.0, -0.002))
    assert max(left_out_errors(made)) < 1e-9


def test_errors_of_models_left_out_are_larger_than_those_of_the_fit():
    made = samples(0.05, 0.0, noise=0.02)
    fitted, left_out = fit_overhead(made), left_out_errors(made)
    within = [abs(fitted.predict_ms(s) / s.measured_ms - 1) for s in made]
    assert fitted.step_ms == pytest.approx(0.05, rel=0.5) and 0 < sum(within) < sum(left_out) < 2 * sum(within)


def test_noise_is_not_fitted():
    assert fit_overhead(samples(0.0, 0.0, noise=0.03)) == Overhead(0.0, 0.0)


@pytest.mark.parametrize("off, factor", [((1, 4), 0.9), ((3, 4), 1.3)])
def test_two_models_that_are_off_do_not_count_for_all(off, factor):
    exact = sorted(samples(0.0, 0.0, noise=0.002, number=6), key=lambda sample: sample.layers)
    found = [s._replace(measured_ms=factor * s.measured_ms) if i in off else s for i, s in enumerate(exact)]
    assert fit_overhead(found) == Overhead(0.0, 0.0)


def test_a_few_models_allow_fewer_terms():
    assert fit_overhead(samples(0.02, 0.001, number=1)) == Overhead()
    assert fit_overhead(samples(0.02, 0.001, number=2)).layer_ms == 0.0


def test_prediction_adds_the_terms():
    assert Overhead(0.1, 0.01).predict_ms(Sample(9.9, 2.0, 5)) == pytest.approx(2.15)
    assert Overhead(0.1, 0.0, -0.02).predict_ms(Sample(9.9, 2.0, 5, 4.0)) == pytest.approx(2.02)
