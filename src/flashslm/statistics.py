"""How sure a measured number is: standard errors, intervals of paired differences, and which of two is better.

An interval that is not known is the whole line: with one document or one seed nothing can be said.
"""

import math
from collections.abc import Collection, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

CONFIDENCE = 0.95
RESAMPLES = 4000
FEW_ITEMS = 20
FEW_RANKED = 5  # of four items even the same order comes by chance with p = 2 / 4! = 0.08
Judgement = Literal["better", "worse", "cannot tell"]


class Difference(NamedTuple):
    """A difference, the ends of its confidence interval, and the p-value of "there is none", over `items` pairs."""

    value: float
    low: float
    high: float
    p_value: float
    items: int
    method: str


class Correlation(NamedTuple):
    """Spearman's rank correlation, and the ends of its confidence interval, over `items` pairs."""

    value: float
    low: float
    high: float
    items: int


def standard_error(values: ArrayLike) -> float:
    """Of the mean of independent values, as lm-evaluation-harness has it (s / sqrt(n)); infinite for a single one."""
    numbers = np.asarray(values, dtype=np.float64)
    return float(numbers.std(ddof=1) / math.sqrt(len(numbers))) if len(numbers) > 1 else math.inf


def ratio_standard_error(totals: ArrayLike, weights: ArrayLike) -> float:
    """Of sum(totals) / sum(weights) over independent items, such as nats per token over documents.

    The linearised ratio estimator (Cochran, Sampling Techniques, 1977, equation 6.13); infinite for a single item.
    """
    t, w = np.asarray(totals, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    residuals = t - w * (t.sum() / w.sum())
    count = len(t)
    return float(math.sqrt(count / (count - 1) * np.square(residuals).sum()) / w.sum()) if count > 1 else math.inf


def mcnemar(first: ArrayLike, second: ArrayLike, confidence: float = CONFIDENCE) -> Difference:
    """The accuracy of `second` less that of `first`, which answered the same questions (booleans, 1 = right).

    The p-value is that of the exact test (McNemar 1947, binomial over the questions on which they differ), the interval
    that of Agresti and Min 2005: Wald's after half a pair has been added to each of the four kinds of pairs.
    """
    from scipy.stats import binomtest, norm

    a, b = _paired(first, second)
    count, gained, lost = len(a), int(((b == 1) & (a == 0)).sum()), int(((a == 1) & (b == 0)).sum())
    p_value = float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    c, n12, n21 = count + 2.0, gained + 0.5, lost + 0.5
    centre = (n12 - n21) / c
    half = float(norm.ppf(0.5 + confidence / 2)) * math.sqrt(n12 + n21 - (n12 - n21) ** 2 / c) / c
    value = (gained - lost) / count
    return Difference(value, min(value, centre - half), max(value, centre + half), p_value, count, "McNemar")


def paired_bootstrap(
    first: ArrayLike,
    second: ArrayLike,
    weights: ArrayLike,
    confidence: float = CONFIDENCE,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Difference:
    """The weighted mean of `second` less that of `first`, both totals of the same items, which are drawn again.

    Totals are an item's sum (a document's nats), weights its size (tokens). The interval is the bootstrap's percentiles
    at the levels that make it as wide as Student's t (Hesterberg 2015, "expanded percentile"). Of fewer than 20 items
    there are too few draws for that: they get Student's t itself, on the linearised ratio.
    """
    from scipy.stats import norm, t

    a, b = _paired(first, second)
    w, gaps = np.asarray(weights, dtype=np.float64), b - a
    count, value = len(w), float(gaps.sum() / w.sum())
    if count != len(a):
        raise ValueError(f"{len(a)} items have {count} weights: each needs one")
    if count < FEW_ITEMS:
        return _t_interval(value, ratio_standard_error(gaps, w), count, confidence)
    drawn = _resampled_ratios(gaps, w, seed, resamples)
    widened = math.sqrt(count / (count - 1)) * float(t.ppf(0.5 - confidence / 2, count - 1))
    level = float(norm.cdf(widened))
    low, high = np.quantile(drawn, [level, 1 - level])
    sides = (int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    p_value = min(1.0, 2 * (min(sides) + 1) / (resamples + 1))
    return Difference(value, min(value, float(low)), max(value, float(high)), p_value, count, "paired bootstrap")


def t_difference(differences: Sequence[float], confidence: float = CONFIDENCE) -> Difference:
    """The mean of a few paired differences, such as those of seeds, with Student's t: two pairs want t = 12.7."""
    return _t_interval(float(np.mean(differences)), standard_error(differences), len(differences), confidence)


def rank_correlation(
    first: ArrayLike, second: ArrayLike, confidence: float = CONFIDENCE, seed: int = 0, resamples: int = RESAMPLES
) -> Correlation:
    """Spearman's correlation of two rankings of the same items; ties share their mean rank.

    The interval is the percentiles of a bootstrap over items. Draws in which one side is all the same have no ranks and
    are left out. Fewer than five items say nothing: their interval is -1 to 1. That of two equal orders has no width.
    """
    from scipy.stats import rankdata

    a, b = _paired(first, second)
    drawn = np.random.default_rng(seed).integers(len(a), size=(resamples, len(a)))
    with np.errstate(invalid="ignore"):
        found = _correlations(rankdata(a[drawn], axis=1), rankdata(b[drawn], axis=1))
        value = float(_correlations(rankdata(a)[None], rankdata(b)[None])[0])
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(found, [tail, 1 - tail]) if len(a) >= FEW_RANKED else (-1.0, 1.0)
    return Correlation(value, float(low), float(high), len(a))


def judge(low: float, high: float, bound: float = 0.0, *, higher_is_better: bool) -> Judgement:
    """What an interval says of a bound. One that is not a number says nothing."""
    above, below = low > bound, high < bound
    if above == below:
        return "cannot tell"
    return "better" if above == higher_is_better else "worse"


def which_end(value: float, values: Collection[float]) -> str:
    """`largest` or `smallest` where the value is an end of the values; empty elsewhere, and where all are equal."""
    ends = {min(values, default=0.0): "smallest", max(values, default=0.0): "largest"}
    return ends.get(value, "") if len(ends) > 1 else ""


def _t_interval(value: float, error: float, count: int, confidence: float) -> Difference:
    from scipy.stats import t

    if count < 2:
        return Difference(value, -math.inf, math.inf, 1.0, count, "t")
    half = float(t.ppf(0.5 + confidence / 2, count - 1)) * error
    p_value = 2 * float(t.sf(abs(value) / error, count - 1)) if error else float(value == 0)
    return Difference(value, value - half, value + half, p_value, count, "t")


def _correlations(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pearson's, row by row; NaN for a row that does not vary."""
    a, b = (rows - rows.mean(axis=1, keepdims=True) for rows in (first, second))
    return np.asarray((a * b).sum(axis=1) / np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1)))


def _paired(first: ArrayLike, second: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape or not len(a):
        raise ValueError(f"{len(a)} and {len(b)} items: a paired difference needs the same items of both, at least one")
    return a, b


def _resampled_ratios(
    totals: NDArray[np.float64], weights: NDArray[np.float64], seed: int, resamples: int
) -> NDArray[np.float64]:
    """The ratio over each of `resamples` draws of the items, one draw in memory at a time."""
    rng, count = np.random.default_rng(seed), len(totals)
    ratios = np.empty(resamples)
    for index in range(resamples):
        times = np.bincount(rng.integers(count, size=count), minlength=count)
        ratios[index] = times @ totals / (times @ weights)
    return ratios
