"""Is the table's sum a whole model's time? Predicted against measured decode steps, with the residual reported."""

import random
import statistics
from collections.abc import Sequence
from itertools import islice

import numpy as np
from pydantic import BaseModel, ConfigDict

from flashslm.models.architecture import parse_operators
from flashslm.profiling.latency_table import LatencyTable
from flashslm.profiling.measure import ModelPoint, available_bytes, l2_mb, measure_together
from flashslm.profiling.overhead import Sample, fit_overhead
from flashslm.profiling.plan import ProfilingPlan
from flashslm.profiling.timing import Timing
from flashslm.profiling.whole_model import CheckedModel, l2_shortfall_mb

# The paper's two winners (table 2) and two plain designs, beside the random ones.
CHECKED_DESIGNS = ("(DFMF AFMF)x2 (DFMF)x2", "(MFAFAFD)x3 MFAFDFF", "(DF)x12", "(AF)x12")
RANDOM_DEPTHS = (4, 30)  # operators


class AdditivityCheck(BaseModel):
    """Absolute relative errors of predicted decode steps.

    `median_relative` and `worst_relative` are the table's, over all models: they hold the machine's drift since the
    table was measured (`drift_relative`, the median change of entries measured again) as well as what a sum cannot
    tell. `summed_*` are those of sums without an overhead. `held_out_*` and `corrected_*` are these sums without and
    with an overhead (once per step, and a layer or for the L2 cache: `overhead_ms`, `layer_overhead_ms`,
    `l2_overhead_ms_per_mb`) that was fitted on the other half of the models. `residual_ms` spreads what the sums miss
    over operators, by letter, and the `step`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    models: tuple[CheckedModel, ...]
    median_relative: float
    worst_relative: float
    median_relative_by_batch: dict[int, float]
    drift_relative: float
    summed_median_relative: float
    summed_worst_relative: float
    residual_ms: dict[str, float]
    overhead_ms: float
    layer_overhead_ms: float
    l2_overhead_ms_per_mb: float
    held_out_median_relative: float
    held_out_worst_relative: float
    corrected_median_relative: float
    corrected_worst_relative: float


def check_additivity(table: LatencyTable, plan: ProfilingPlan, seed: int = 0) -> AdditivityCheck:
    """Measure `check_models` random whole models and the known designs, and compare them with the table's sums.

    None of them has the operators of a model that the table was calibrated on.
    """
    rng = random.Random(seed)
    calibrated = {model.operators for model in table.calibration}
    drawn = iter(lambda: _random_operators(rng, plan.profiling.operators), "")
    others = islice((operators for operators in drawn if operators not in calibrated), plan.profiling.check_models)
    known = (parse_operators(design) for design in CHECKED_DESIGNS)
    designs = [*others, *(operators for operators in known if operators not in calibrated)]
    points = [random_point(table, plan, rng, table.batches, design) for design in designs]
    timings, fresh, sums = measure_beside(table, plan, points)
    return summarize(compared(points, timings, table, sums), drift_relative(table, fresh), l2_mb(plan.device))


def measure_beside(
    table: LatencyTable, plan: ProfilingPlan, points: Sequence[ModelPoint]
) -> tuple[list[Timing], LatencyTable, LatencyTable]:
    """Times of whole models, interleaved with entries measured again; the table of those; and the table whose sums the
    models are compared with: on a CPU the one of the same minute, without the drift since `table` was measured.
    """
    again = plan
    if plan.device == "cuda":  # it keeps its clock: a few entries tell the drift
        again = plan.changed(widths=table.widths[:1], batches=table.batches[:1], contexts=table.contexts[:1])
    fresh, timings = measure_together(again, points)
    return timings, fresh, fresh if again is plan else table


def random_point(
    table: LatencyTable, plan: ProfilingPlan, rng: random.Random, batches: Sequence[int], operators: str = ""
) -> ModelPoint:
    """A model (random, if not given) at a random width, and one of the contexts and batches at which it fits."""
    width = rng.choice(table.widths)
    architecture = plan.architecture(operators or _random_operators(rng, plan.profiling.operators), width)
    memory_bytes = available_bytes(plan.device)
    places = [
        (context, batch)
        for context in table.contexts
        for batch in batches
        if table.covers(architecture.operators, width, context, batch)
        and plan.resident_bytes(architecture, context, batch) <= memory_bytes
    ]
    if not places:
        raise ValueError(
            f"'{architecture.operators}' at width {width} fits the memory at none of contexts {list(table.contexts)} "
            f"and batches {list(batches)}: add a smaller one to the profiling section"
        )
    return ModelPoint(architecture, *rng.choice(places))


def compared(
    points: Sequence[ModelPoint], timings: Sequence[Timing], table: LatencyTable, sums: LatencyTable
) -> list[CheckedModel]:
    """Measured models beside the table's predictions and the plain sums of `sums`."""
    return [
        CheckedModel(
            operators=point.architecture.operators,
            width=point.architecture.hidden_size,
            context=point.context,
            batch=point.batch,
            measured_ms=timing.median_ms,
            predicted_ms=table.predict_ms(point.architecture, point.context, point.batch),
            summed_ms=sums.sum_ms(point.architecture, point.context, point.batch),
            step_mb=table.step_mb(point.architecture, point.context, point.batch),
        )
        for point, timing in zip(points, timings, strict=True)
    ]


def drift_relative(before: LatencyTable, after: LatencyTable) -> float:
    """Median change of the entries that both tables hold."""
    then, now = ({e.key: e.median_ms for e in table.entries} for table in (before, after))
    return statistics.median(now[key] / then[key] - 1 for key in then.keys() & now.keys())


def summarize(models: Sequence[CheckedModel], drift: float, l2_mb: float = 0.0) -> AdditivityCheck:
    """Errors over at least two models; every second one is fitted on, the others are held out."""
    held_out = models[1::2]
    overhead = fit_overhead([sample_of(model, l2_mb) for model in models[::2]])
    errors = {
        "": [m.predicted_ms / m.measured_ms - 1 for m in models],
        "summed_": [m.summed_ms / m.measured_ms - 1 for m in models],
        "held_out_": [m.summed_ms / m.measured_ms - 1 for m in held_out],
        "corrected_": [overhead.predict_ms(sample_of(m, l2_mb)) / m.measured_ms - 1 for m in held_out],
    }
    medians = {f"{name}median_relative": statistics.median(map(abs, values)) for name, values in errors.items()}
    worst = {f"{name}worst_relative": max(map(abs, values)) for name, values in errors.items()}
    by_batch = {
        batch: statistics.median(abs(m.predicted_ms / m.measured_ms - 1) for m in models if m.batch == batch)
        for batch in sorted({m.batch for m in models})
    }
    return AdditivityCheck(
        models=tuple(models),
        drift_relative=drift,
        median_relative_by_batch=by_batch,
        residual_ms=_residual_ms(models),
        overhead_ms=overhead.step_ms,
        layer_overhead_ms=overhead.layer_ms,
        l2_overhead_ms_per_mb=overhead.l2_ms_per_mb,
        **medians,
        **worst,
    )


def _residual_ms(models: Sequence[CheckedModel]) -> dict[str, float]:
    """Least squares, relative to the models' times, of measured - sum over the operators' counts and a constant."""
    letters = sorted(set("".join(m.operators for m in models)))
    measured_ms = np.array([m.measured_ms for m in models])
    rows = np.array([[*(m.operators.count(letter) for letter in letters), 1] for m in models])
    missing = 1 - np.array([m.summed_ms for m in models]) / measured_ms
    solution, *_ = np.linalg.lstsq(rows / measured_ms[:, None], missing, rcond=None)
    return dict(zip([*letters, "step"], map(float, solution), strict=True))


def sample_of(model: CheckedModel, l2_mb: float) -> Sample:
    """What the fit takes of a whole model, on a GPU with this L2 cache."""
    return Sample(model.measured_ms, model.summed_ms, len(model.operators), l2_shortfall_mb(l2_mb, model.step_mb))


def _random_operators(rng: random.Random, letters: str) -> str:
    return "".join(rng.choices(letters, k=rng.randint(*RANDOM_DEPTHS)))
