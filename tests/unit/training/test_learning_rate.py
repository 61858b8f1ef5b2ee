import math

import pytest

from flashslm.training.learning_rate import learning_rate
from tests.unit.training.tiny import config


def test_warm_up_is_linear_and_reaches_the_peak() -> None:
    settings = config(steps=100, warmup_steps=4, learning_rate=1.0)
    assert [learning_rate(step, settings) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]


def test_cosine_runs_from_the_peak_to_the_minimum_at_the_last_step() -> None:
    settings = config(steps=15, warmup_steps=4, learning_rate=2.0, min_learning_rate_ratio=0.1)
    assert learning_rate(4, settings) == 2.0
    assert learning_rate(9, settings) == pytest.approx(2.0 * 0.55)  # half way: the mean of peak and minimum
    assert learning_rate(14, settings) == pytest.approx(0.2)
    assert learning_rate(6, settings) == pytest.approx(0.2 + 0.9 * (1 + math.cos(0.2 * math.pi)))


def test_a_minimum_ratio_of_one_is_a_constant_rate() -> None:
    settings = config(steps=20, warmup_steps=2, learning_rate=3.0, min_learning_rate_ratio=1.0)
    assert {learning_rate(step, settings) for step in range(2, 20)} == {3.0}


@pytest.mark.parametrize("warmup_steps", [0, 1, 5, 9])
def test_any_warm_up_gives_positive_rates_within_the_peak(warmup_steps: int) -> None:
    settings = config(steps=5, warmup_steps=warmup_steps, learning_rate=1.0)
    assert all(0 < learning_rate(step, settings) <= 1 for step in range(5))
