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


def test_the_stable_rate_falls_in_the_last_steps_alone() -> None:
    settings = config(
        steps=20, warmup_steps=2, learning_rate=2.0, schedule="warmup_stable_decay", decay_steps=4,
        min_learning_rate_ratio=0.1,
    )  # fmt: skip
    assert {learning_rate(step, settings) for step in range(1, 16)} == {2.0}
    assert learning_rate(16, settings) == pytest.approx(0.2 + 1.8 * (1 - math.sqrt(1 / 4)))
    assert learning_rate(18, settings) == pytest.approx(0.2 + 1.8 * (1 - math.sqrt(3 / 4)))
    assert learning_rate(19, settings) == pytest.approx(0.2)


@pytest.mark.parametrize("decay_steps", [0, 19])
def test_the_decay_lies_behind_the_warm_up(decay_steps: int) -> None:
    with pytest.raises(ValueError, match=rf"decay_steps is {decay_steps}: .* takes 1 to steps - warmup_steps \(18\)"):
        config(steps=20, warmup_steps=2, schedule="warmup_stable_decay", decay_steps=decay_steps)
