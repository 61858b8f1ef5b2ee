"""Standard errors and intervals against known values, other implementations and their coverage in simulations."""

import math

import numpy as np
import pytest
from scipy import stats

from flashslm.statistics import (
    judge,
    mcnemar,
    paired_bootstrap,
    rank_correlation,
    ratio_standard_error,
    standard_error,
    t_difference,
    which_end,
)


def test_standard_error_is_that_of_the_harness() -> None:
    from lm_eval.api.metrics import mean_stderr

    right = [1, 0, 0, 1, 1, 1, 0, 1]
    assert standard_error(right) == pytest.approx(mean_stderr(right))
    assert standard_error([3.0]) == math.inf


def test_ratio_standard_error_is_the_spread_over_repeated_samples() -> None:
    rng = np.random.default_rng(1)
    ratios, errors = [], []
    for _ in range(2000):
        sizes = rng.integers(5, 200, size=60).astype(float)
        nats = sizes * rng.normal(3.0, 0.5, size=60)
        ratios.append(nats.sum() / sizes.sum())
        errors.append(ratio_standard_error(nats, sizes))
    assert np.mean(errors) == pytest.approx(np.std(ratios), rel=0.05)
    assert ratio_standard_error([5.0], [2.0]) == math.inf


def test_mcnemar_by_hand() -> None:
    # 6 of 20 and 14 of 20 right: 9 gained, 1 lost.
    first = [1] * 5 + [1] + [0] * 9 + [0] * 5
    second = [1] * 5 + [0] + [1] * 9 + [0] * 5
    found = mcnemar(first, second)
    assert found.value == pytest.approx(0.4)
    assert found.p_value == pytest.approx(2 * sum(math.comb(10, k) for k in (0, 1)) / 2**10)
    n12, n21, n = 9.5, 1.5, 22
    half = 1.959964 * math.sqrt(n12 + n21 - (n12 - n21) ** 2 / n) / n
    assert (found.low, found.high) == pytest.approx(((n12 - n21) / n - half, (n12 - n21) / n + half))


def test_answers_that_never_differ_still_have_an_interval() -> None:
    found = mcnemar([1, 0, 1, 0], [1, 0, 1, 0])
    assert found.value == 0 and found.p_value == 1 and found.low == pytest.approx(-found.high) and found.high > 0.3


@pytest.mark.parametrize("documents", [4, 20, 60])
def test_bootstrap_covers_the_true_difference(documents: int) -> None:
    rng, covered = np.random.default_rng(0), 0
    for repetition in range(300):
        sizes = rng.integers(50, 150, size=documents).astype(float)
        difficulty = rng.normal(3, 1, size=documents)
        first = sizes * difficulty
        second = sizes * (difficulty - 0.1 + rng.normal(0, 0.05, size=documents))
        found = paired_bootstrap(first, second, sizes, seed=repetition, resamples=400)
        covered += found.low <= -0.1 <= found.high
        assert found.value == pytest.approx((second.sum() - first.sum()) / sizes.sum())
    assert 0.91 < covered / 300 < 0.995


def test_pairing_sees_what_separate_errors_hide() -> None:
    rng = np.random.default_rng(3)
    sizes = np.full(50, 100.0)
    first = sizes * rng.normal(3, 1, size=50)
    second = first - sizes * rng.normal(0.02, 0.01, size=50)
    assert ratio_standard_error(first, sizes) > 0.1
    found = paired_bootstrap(first, second, sizes)
    assert found.low < -0.02 < found.high < 0 and found.p_value < 0.01
    assert paired_bootstrap(first, second, sizes) == found, "the same items give the same interval"


def test_one_document_says_nothing() -> None:
    found = paired_bootstrap([3.0], [2.0], [1.0])
    assert found.value == -1 and (found.low, found.high, found.p_value) == (-math.inf, math.inf, 1.0)


def test_two_pairs_want_t_of_12_7() -> None:
    found = t_difference([-0.1, -0.3])
    assert found.value == pytest.approx(-0.2)
    assert found.high - found.value == pytest.approx(12.7062 * 0.1, rel=1e-5)
    assert found.p_value == pytest.approx(stats.ttest_1samp([-0.1, -0.3], 0).pvalue)
    assert (t_difference([-0.5]).low, t_difference([-0.5]).high) == (-math.inf, math.inf)
    assert t_difference([-0.5, -0.5]).p_value == 0


def test_rank_correlation_is_spearmans_with_ties() -> None:
    first, second = [1.0, 2.0, 2.0, 4.0, 9.0, 3.0], [2.0, 1.0, 3.0, 30.0, 40.0, 3.0]
    found = rank_correlation(first, second)
    assert found.value == pytest.approx(stats.spearmanr(first, second).statistic) and found.items == 6
    assert found.low < found.value < found.high <= 1
    same = rank_correlation(first, np.exp(first))
    assert (same.value, same.low, same.high) == pytest.approx((1.0, 1.0, 1.0))


def test_rank_correlation_interval_narrows_with_the_items_and_covers_none() -> None:
    rng = np.random.default_rng(0)
    few, many = (rank_correlation(rng.normal(size=n), rng.normal(size=n), resamples=1000) for n in (12, 200))
    assert few.low < 0 < few.high and many.high - many.low < 0.5 * (few.high - few.low)


def test_an_order_of_four_items_says_nothing() -> None:
    found = rank_correlation([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0])
    assert (found.value, found.low, found.high) == (pytest.approx(1.0), -1.0, 1.0)


def test_items_must_be_the_same() -> None:
    with pytest.raises(ValueError, match="3 and 2 items"):
        mcnemar([1, 0, 1], [1, 0])
    with pytest.raises(ValueError, match="2 items have 3 weights"):
        paired_bootstrap([1, 2], [1, 2], [1, 1, 1])


@pytest.mark.parametrize(
    ("low", "high", "bound", "higher", "lower"),
    [
        (0.1, 0.3, 0.0, "better", "worse"),
        (-0.3, -0.1, 0.0, "worse", "better"),
        (-0.1, 0.1, 0.0, "cannot tell", "cannot tell"),
        (0.1, 0.3, 0.2, "cannot tell", "cannot tell"),
        (0.0, 0.3, 0.0, "cannot tell", "cannot tell"),
        (math.nan, math.nan, 0.0, "cannot tell", "cannot tell"),
        (-math.inf, math.inf, 0.0, "cannot tell", "cannot tell"),
    ],
)
def test_an_interval_says_better_worse_or_nothing(
    low: float, high: float, bound: float, higher: str, lower: str
) -> None:
    assert judge(low, high, bound, higher_is_better=True) == higher
    assert judge(low, high, bound, higher_is_better=False) == lower


@pytest.mark.parametrize(("value", "end"), [(128, "smallest"), (192, "largest"), (160, ""), (256, ""), (64, "")])
def test_an_end_is_the_largest_or_smallest_of_several_values(value: int, end: str) -> None:
    assert which_end(value, (192, 128, 160)) == end
    assert which_end(value, (value, value)) == which_end(value, ()) == ""
