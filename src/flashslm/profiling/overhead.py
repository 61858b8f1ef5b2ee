"""What whole models take beyond the sum of their operators: a term a step and a term a layer, if they help."""

from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

import numpy as np

MIN_GAIN = 0.1  # a term must lessen the mean error of models left out of the fit by this much, relatively,
MIN_BETTER = 0.75  # and predict this share of them better


class Sample(NamedTuple):
    """A whole model's measured time, its entries' sum, and its number of operators."""

    measured_ms: float
    summed_ms: float
    layers: int


class Overhead(NamedTuple):
    """Milliseconds to add to a sum: once, and for each layer."""

    step_ms: float = 0.0
    layer_ms: float = 0.0

    def predict_ms(self, sample: Sample) -> float:
        return sample.summed_ms + self.step_ms + self.layer_ms * sample.layers


def fit_overhead(samples: Sequence[Sample]) -> Overhead:
    """Least squares of the relative errors; no term that does not predict models better which it was not fitted on."""
    terms, errors = 0, _left_out_errors(samples, 0)
    for more in (1, 2):
        if len(samples) > more and _is_better(left := _left_out_errors(samples, more), errors):
            terms, errors = more, left
    return _solve(samples, terms)


def _is_better(errors: Sequence[float], before: Sequence[float]) -> bool:
    """On the average and for most models: one model that is off pulls a fit towards it and away from all others."""
    better = sum(now < then for now, then in zip(errors, before, strict=True))
    return fmean(errors) < (1 - MIN_GAIN) * fmean(before) and better >= MIN_BETTER * len(errors)


def _left_out_errors(samples: Sequence[Sample], terms: int) -> list[float]:
    """Relative error of each sample, predicted by a fit on all the others."""
    fits = [_solve([*samples[:i], *samples[i + 1 :]], terms) for i in range(len(samples))]
    return [abs(fit.predict_ms(s) / s.measured_ms - 1) for fit, s in zip(fits, samples, strict=True)]


def _solve(samples: Sequence[Sample], terms: int) -> Overhead:
    if not terms:
        return Overhead()
    rows = np.array([[1.0, s.layers][:terms] for s in samples])
    measured_ms, summed_ms = (np.array([s[i] for s in samples]) for i in range(2))
    solution, *_ = np.linalg.lstsq(rows / measured_ms[:, None], 1 - summed_ms / measured_ms, rcond=None)
    return Overhead(*(float(value) for value in solution))
