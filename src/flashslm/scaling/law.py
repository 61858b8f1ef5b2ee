"""The depth-width law L(D, W, N) = L0 + a·D^-alpha + b·W^-beta + c·N^-g (Nemotron-Flash, section 3.1).

D is the depth in blocks, W the hidden size, N the training tokens, L the validation loss in nats per token, which is
the logarithm of perplexity. The paper fits the same form to perplexity itself; a difference in nats is a relative one
of perplexity, so the worst models do not dominate the fit. Errors are stated in perplexity, as the paper's 5.3 % is.

In the paper g is one constant: each doubling of the tokens takes as many nats off every model. Far from convergence
larger models gain more (Farseer, Li et al. 2025, arXiv 2506.10972, gives N's term an amplitude and an exponent that
depend on the size). Here g = gamma + kappa·log(D·W²/S0), and c·N^-g is the same for all models at N0 tokens; D·W² is
proportional to the parameters of the blocks, S0 and N0 are geometric means of the points. kappa = 0 is the paper's law.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from flashslm.scaling.points import has_kappa, num_constants

AXES = ("depth", "width", "tokens")
NAMES = ("L0", "a", "alpha", "b", "beta", "c", "gamma", "kappa")
EXPONENT_BOUNDS = (0.02, 3.0)
KAPPA_BOUNDS = (-0.5, 0.5)
MIN_TERM_NATS = 1e-4  # smallest L0 and smallest value of a term at the geometric mean of the points
HUBER_LOG_LOSS = 1e-3  # residuals of log L beyond it count linearly (Hoffmann et al. 2022, section 3.3)
_STARTS = 24
_BOUND_MARGIN = 0.01  # of the allowed range: an interval that ends nearer than this to a bound is said to touch it
Map = Callable[..., Iterable[Any]]  # `map`, or that of an executor


class ScalingPoint(BaseModel):
    """One measured model: `depth` blocks, `width` hidden size, after `tokens` training tokens."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    depth: int = Field(ge=1)
    width: int = Field(ge=1)
    tokens: int = Field(ge=1)
    loss_nats: float = Field(gt=0)
    parameters: int = Field(default=0, ge=0)


class DepthWidthLaw(BaseModel):
    """A fitted law with its bootstrap replicates; `constants` and each replicate are keyed by `NAMES`.

    `reference_size` and `reference_tokens` are S0 and N0. `unidentified` names the constants these points do not
    determine: the axis has fewer than three distinct values, the 90 % interval ends at a bound of the fit, or kappa was
    not fitted. Predictions inside the range of the points stay usable. `ranges` has the smallest and largest value of
    each axis among the points.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    constants: dict[str, float]
    replicates: tuple[dict[str, float], ...]
    reference_size: float
    reference_tokens: float
    residual_std_nats: float
    num_points: int
    unidentified: tuple[str, ...]
    ranges: dict[str, tuple[int, int]]

    def predict(self, depth: float, width: float, tokens: float) -> float:
        """Loss in nats."""
        return self._evaluate(self.constants, depth, width, tokens)

    def interval(self, depth: float, width: float, tokens: float, level: float = 0.9) -> tuple[float, float]:
        """Percentile interval of the predicted loss in nats: the curve's, without the scatter of a single run."""
        low, high = _percentiles([self._evaluate(r, depth, width, tokens) for r in self.replicates], level)
        return float(low), float(high)

    def constant_interval(self, name: str, level: float = 0.9) -> tuple[float, float]:
        """Percentile interval of one constant of `NAMES`."""
        low, high = _percentiles([r[name] for r in self.replicates], level)
        return float(low), float(high)

    def extrapolated_axes(self, depth: float, width: float, tokens: float) -> tuple[str, ...]:
        """The axes on which a prediction lies outside the points that were fitted."""
        at = dict(zip(AXES, (depth, width, tokens), strict=True))
        return tuple(axis for axis, (low, high) in self.ranges.items() if not low <= at[axis] <= high)

    def perplexity_error(self, points: Sequence[ScalingPoint]) -> float:
        """Largest |predicted perplexity / measured perplexity - 1| over held-out points."""
        if not points:
            raise ValueError("perplexity_error needs at least one held-out point")
        return max(abs(math.expm1(self.predict(p.depth, p.width, p.tokens) - p.loss_nats)) for p in points)

    def _evaluate(self, constants: dict[str, float], depth: float, width: float, tokens: float) -> float:
        loss = constants["L0"]
        for value, (amplitude, exponent) in zip((depth, width), map(_names, AXES), strict=False):
            loss += constants[amplitude] * float(value) ** -constants[exponent]
        more = constants["kappa"] * math.log(depth * width**2 / self.reference_size)
        at_tokens = float(tokens) ** -constants["gamma"] * (tokens / self.reference_tokens) ** -more
        return float(loss + constants["c"] * at_tokens)


def fit_law(points: Sequence[ScalingPoint], bootstrap: int = 100, seed: int = 0, mapped: Map = map) -> DepthWidthLaw:
    """Fit by multi-start Huber regression on log L, as the field does; intervals by a bootstrap over residuals.

    A run that went astray pulls on the fit no more than any other that lies off it (`HUBER_LOG_LOSS`).

    An axis on which all points agree has no term: its effect is part of L0 (as the paper drops the term in N at a fixed
    N). kappa is fitted where `has_kappa` says so and 0 elsewhere. `mapped` calls the fits of all starts, which do not
    depend on each other, as `map` does: a process pool's `map` gives the same law sooner. Raises ValueError when there
    are not more points than constants.
    """
    problem = _Problem(points)
    rng = np.random.default_rng(seed)
    (theta,) = problem.solve([(problem.loss, [problem.random_start(rng) for _ in range(_STARTS)])], mapped)
    fitted = problem.predict(theta)
    residuals = problem.loss - fitted
    resampled = [
        (fitted + problem.resample(residuals, rng), [theta, problem.random_start(rng)]) for _ in range(bootstrap)
    ]
    samples = problem.solve(resampled, mapped)
    return DepthWidthLaw(
        constants=problem.constants(theta),
        replicates=tuple(problem.constants(sample) for sample in samples),
        reference_size=float(np.exp(problem.center_size)),
        reference_tokens=float(np.exp(problem.columns["tokens"].mean())),
        residual_std_nats=float(np.sqrt(np.sum(residuals**2) / (len(points) - theta.size))),
        num_points=len(points),
        unidentified=problem.unidentified(np.array(samples)),
        ranges={axis: (min(values), max(values)) for axis, values in _columns(points).items()},
    )


class _Problem:
    """The regression problem in theta = [log L0, (log term, exponent) of each axis that varies, kappa if fitted].

    A term is measured at the geometric mean of its axis, which all but removes its correlation with the exponent; the
    logarithm keeps every term positive.
    """

    def __init__(self, points: Sequence[ScalingPoint]):
        self.loss = np.array([p.loss_nats for p in points])
        self.columns = columns = {axis: np.log(values) for axis, values in _columns(points).items()}
        self.distinct = {axis: len(np.unique(column)) for axis, column in columns.items()}
        self.axes = [axis for axis in AXES if self.distinct[axis] > 1]
        self.size = num_constants(*self.distinct.values())
        if len(points) <= self.size:
            raise ValueError(
                f"{len(points)} points for a law of {self.size} constants: give at least {self.size + 1} "
                "(more depths, widths, or checkpoints of each run)"
            )
        self.run = np.unique([(p.depth, p.width) for p in points], axis=0, return_inverse=True)[1].reshape(-1)
        self.center = {axis: columns[axis].mean() for axis in self.axes}
        self.log_ratio = [columns[axis] - self.center[axis] for axis in self.axes]
        log_size = columns["depth"] + 2 * columns["width"]
        self.center_size = log_size.mean()
        self.size_ratio = log_size - self.center_size
        self.kappa = slice(1 + 2 * len(self.axes), self.size)  # empty where it is not fitted
        term = (np.log(MIN_TERM_NATS), np.log(self.loss.max()))
        fitted_kappa = [KAPPA_BOUNDS] * has_kappa(*self.distinct.values())
        bounds = np.array([term] + [term, EXPONENT_BOUNDS] * len(self.axes) + fitted_kappa)
        self.lower, self.upper = bounds[:, 0], bounds[:, 1]

    def terms(self, theta: np.ndarray) -> list[np.ndarray]:
        logs = [theta[1 + 2 * j] - theta[2 + 2 * j] * x for j, x in enumerate(self.log_ratio)]
        for kappa in theta[self.kappa]:
            logs[-1] = logs[-1] - kappa * self.size_ratio * self.log_ratio[-1]
        return [np.exp(log) for log in logs]

    def predict(self, theta: np.ndarray) -> np.ndarray:
        return np.asarray(np.exp(theta[0]) + sum(self.terms(theta), np.zeros_like(self.loss)))

    def log_jacobian(self, theta: np.ndarray) -> np.ndarray:
        """Derivatives of log L, one column per element of theta."""
        columns, terms = [np.full_like(self.loss, np.exp(theta[0]))], self.terms(theta)
        for term, x in zip(terms, self.log_ratio, strict=True):
            columns += [term, -x * term]
        columns += [-self.size_ratio * self.log_ratio[-1] * terms[-1] for _ in theta[self.kappa]]
        return np.asarray(np.stack(columns, axis=1) / self.predict(theta)[:, None])

    def random_start(self, rng: np.random.Generator) -> np.ndarray:
        """L0 takes most of the lowest loss, terms a share of what is left, exponents are log-uniform, kappa is 0."""
        theta = np.zeros(self.size)
        theta[0] = np.log(self.loss.min() * rng.uniform(0.1, 0.95))
        end = self.kappa.start
        theta[1:end:2] = np.log(self.loss.mean() * rng.uniform(0.01, 0.5, len(self.axes)))
        theta[2:end:2] = np.exp(rng.uniform(np.log(0.05), np.log(1.5), len(self.axes)))
        return np.clip(theta, self.lower, self.upper)

    def solve(self, losses: list[tuple[np.ndarray, list[np.ndarray]]], mapped: Map) -> list[np.ndarray]:
        """For each vector of losses the best local minimum over its starts."""
        from_starts = [(loss, start) for loss, starts in losses for start in starts]
        fits = iter(mapped(self.local_minimum, *zip(*from_starts, strict=True)))
        return [min(islice(fits, len(starts)), key=lambda fit: float(fit[0]))[1] for _, starts in losses]

    def local_minimum(self, loss: np.ndarray, start: np.ndarray) -> tuple[float, np.ndarray]:
        """That which a start leads to: its cost, and where it is."""
        from scipy.optimize import least_squares

        def residuals(theta: np.ndarray) -> np.ndarray:
            return np.asarray(np.log(self.predict(theta) / loss))

        options: dict[str, Any] = {"loss": "huber", "f_scale": HUBER_LOG_LOSS, "x_scale": "jac", "max_nfev": 300}
        bounds = (self.lower, self.upper)
        fit = least_squares(residuals, start, self.log_jacobian, bounds, **options)
        return float(fit.cost), np.asarray(fit.x)

    def resample(self, residuals: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draw residuals again: each run's mean from the runs' means, the rest from all deviations within a run.

        Points read off one run share its seed and so its luck; drawing them one by one would promise intervals several
        times too narrow. Both parts are widened for the constants that were fitted to them: depth, width and L0 are
        decided between runs, the tokens' term within them.
        """
        points, runs = len(residuals), int(self.run.max()) + 1
        means = np.bincount(self.run, residuals) / np.bincount(self.run)
        within = residuals - means[self.run]
        between_constants = 1 + 2 * sum(axis != "tokens" for axis in self.axes)
        means = means * np.sqrt(runs / max(1, runs - between_constants))
        within = within * np.sqrt(points / max(1, points - runs - (self.size - between_constants)))
        return np.asarray(rng.choice(means, runs)[self.run] + rng.choice(within, points))

    def constants(self, theta: np.ndarray) -> dict[str, float]:
        """In the law's own units: a term t at the axis' geometric mean m is the amplitude t·m^exponent."""
        values = dict.fromkeys(NAMES, 0.0) | {"L0": float(np.exp(theta[0]))}
        for j, axis in enumerate(self.axes):
            amplitude, exponent = _names(axis)
            values[exponent] = float(theta[2 + 2 * j])
            values[amplitude] = float(np.exp(theta[1 + 2 * j] + theta[2 + 2 * j] * self.center[axis]))
        values["kappa"] = float(theta[self.kappa].sum())
        return values

    def unidentified(self, samples: np.ndarray) -> tuple[str, ...]:
        names = {name for axis in AXES if self.distinct[axis] < 3 for name in _names(axis)}
        low, high = _percentiles(samples, 0.9)
        margin = _BOUND_MARGIN * (self.upper - self.lower)
        touches = (low < self.lower + margin) | (high > self.upper - margin)
        if touches[0]:
            names.add("L0")
        if touches[self.kappa].any() or not touches[self.kappa].size:
            names.add("kappa")
        for j, axis in enumerate(self.axes):
            if touches[1 + 2 * j] or touches[2 + 2 * j]:
                names.update(_names(axis))
        return tuple(name for name in NAMES if name in names)


def _columns(points: Sequence[ScalingPoint]) -> dict[str, list[int]]:
    return {axis: [getattr(point, axis) for point in points] for axis in AXES}


def _names(axis: str) -> tuple[str, str]:
    """Amplitude and exponent of an axis."""
    first = 1 + 2 * AXES.index(axis)
    return NAMES[first], NAMES[first + 1]


def _percentiles(samples: list[float] | np.ndarray, level: float) -> np.ndarray:
    """Ends of the middle `level` of the samples, along their first axis.

    The k-th of n sorted draws is taken as the quantile k/(n + 1): a further draw lies between the ends with probability
    `level`. numpy's default, (k - 1)/(n - 1), would make it 0.86 instead of 0.9 with 50 draws. Fewer than 19 cannot
    span 0.9: the ends are the extremes.
    """
    tail = 50 * (1 - level)
    return np.asarray(np.percentile(np.asarray(samples), [tail, 100 - tail], axis=0, method="weibull"))
