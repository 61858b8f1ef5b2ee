"""What whole models take beyond the sum of their operators: a term a step, and one a layer or for the L2 cache, if they
help."""

from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

import numpy as np

MIN_GAIN = 0.1  # a term must lessen the mean error of models left out of the fit by this much, relatively,
MIN_BETTER = 0.75  # and predict this share of them better

Form = tuple[int, ...]  # which of Overhead's terms are fitted

# One term, and then the better of two pairs. All three together predicted models that were left out worse than a pair.
FORMS: tuple[tuple[Form, ...], ...] = (((0,),), ((0, 1), (0, 2)))


class Sample(NamedTuple):
    """A whole model's measured time, its entries' sum, its number of operators, and how many MB its step's bytes fall
    short of the L2 cache."""

    measured_ms: float
    summed_ms: float
    layers: int
    short_mb: float = 0.0


class Overhead(NamedTuple):
    """Milliseconds to add to a sum: once, for each layer, and for each MB below the L2 cache."""

    step_ms: float = 0.0
    layer_ms: float = 0.0
    l2_ms_per_mb: float = 0.0

    def predict_ms(self, sample: Sample) -> float:
        terms = (self.step_ms, self.layer_ms * sample.layers, self.l2_ms_per_mb * sample.short_mb)
        return sample.summed_ms + sum(terms)


def fit_overhead(samples: Sequence[Sample]) -> Overhead:
    """Least squares of the relative errors; no term that does not predict models better which it was not fitted on."""
    return solve(samples, _chosen_form(samples))


def left_out_errors(samples: Sequence[Sample]) -> list[float]:
    """Absolute relative error of each sample, predicted by a fit on all the others with the terms that all of them
    choose."""
    return _left_out_errors(samples, _chosen_form(samples))


def _chosen_form(samples: Sequence[Sample]) -> Form:
    chosen: Form = ()
    errors = _left_out_errors(samples, chosen)
    for forms in FORMS:
        left = {form: _left_out_errors(samples, form) for form in forms if len(samples) > len(form)}
        best = min(left, key=lambda form: fmean(left[form]), default=chosen)
        if left and _is_better(left[best], errors):
            chosen, errors = best, left[best]
    return chosen


def _is_better(errors: Sequence[float], before: Sequence[float]) -> bool:
    """On the average and for most models: one model that is off pulls a fit towards it and away from all others."""
    better = sum(now < then for now, then in zip(errors, before, strict=True))
    return fmean(errors) < (1 - MIN_GAIN) * fmean(before) and better >= MIN_BETTER * len(errors)


def _left_out_errors(samples: Sequence[Sample], form: Form) -> list[float]:
    fits = [solve([*samples[:i], *samples[i + 1 :]], form) for i in range(len(samples))]
    return [abs(fit.predict_ms(s) / s.measured_ms - 1) for fit, s in zip(fits, samples, strict=True)]


def solve(samples: Sequence[Sample], form: Form) -> Overhead:
    """Least squares of the relative errors with these terms."""
    if not form:
        return Overhead()
    rows = np.array([[1.0, s.layers, s.short_mb] for s in samples])[:, form]
    measured_ms, summed_ms = (np.array([s[i] for s in samples]) for i in range(2))
    solution, *_ = np.linalg.lstsq(rows / measured_ms[:, None], 1 - summed_ms / measured_ms, rcond=None)
    return Overhead()._replace(**{Overhead._fields[i]: float(v) for i, v in zip(form, solution, strict=True)})
