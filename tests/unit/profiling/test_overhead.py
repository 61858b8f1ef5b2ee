import random

import pytest

from flashslm.profiling.overhead import Overhead, Sample, fit_overhead


def samples(step_ms, layer_ms, noise=0.0, factor=1.0, number=8):
    rng = random.Random(2)
    made = []
    for _ in range(number):
        summed_ms, layers = rng.uniform(0.1, 2.0), rng.randint(4, 30)
        exact = factor * summed_ms + step_ms + layer_ms * layers
        made.append(Sample(exact * (1 + noise * rng.uniform(-1, 1)), summed_ms, layers))
    return made


def test_both_terms_are_found():
    assert fit_overhead(samples(0.01, -0.002)) == pytest.approx((0.01, -0.002))


def test_one_term_suffices_where_layers_cost_nothing():
    found = fit_overhead(samples(0.02, 0.0))
    assert found == pytest.approx((0.02, 0.0)) and found.layer_ms == 0.0


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
