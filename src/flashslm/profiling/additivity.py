"""Is the table's sum a whole model's time? Predicted against measured decode steps, with the residual reported."""

import random
import statistics
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from flashslm.config import ModelConfig, ProfilingConfig
from flashslm.models.architecture import EXPORTABLE_OPERATORS, build_architecture
from flashslm.profiling.latency_table import LatencyTable

# The paper's two winners (table 2) and two plain designs, beside the random ones.
CHECKED_DESIGNS = ("(DFMF AFMF)x2 (DFMF)x2", "(MFAFAFD)x3 MFAFDFF", "(DF)x12", "(AF)x12")
RANDOM_DEPTHS = (4, 30)  # operators


class CheckedModel(BaseModel):
    """One whole model; milliseconds per decode step."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    operators: str
    width: int
    context: int
    batch: int
    measured_ms: float
    predicted_ms: float  # by the table
    summed_ms: float  # by entries measured anew, interleaved with the whole models


class AdditivityCheck(BaseModel):
    """Absolute relative errors of predicted decode steps.

    `median_relative` and `worst_relative` are the table's, over all models: they hold the machine's drift since the
    table was measured (`drift_relative`, the entries' median change) as well as what a sum cannot tell. `summed_*` are
    those of entries measured together with the models. `held_out_*` and `corrected_*` are these sums without and with
    an engine overhead per step that was fitted on the other half of the models.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    models: tuple[CheckedModel, ...]
    median_relative: float
    worst_relative: float
    drift_relative: float
    summed_median_relative: float
    summed_worst_relative: float
    overhead_ms: float
    held_out_median_relative: float
    held_out_worst_relative: float
    corrected_median_relative: float
    corrected_worst_relative: float


def check_additivity(
    table: LatencyTable, config: ProfilingConfig, sizes: ModelConfig, vocab_size: int, seed: int = 0
) -> AdditivityCheck:
    """Measure `check_models` random whole models and the known designs, and compare them with the table's sums."""
    from flashslm.profiling.measure import ModelPoint, measure_together

    rng = random.Random(seed)
    designs = [_random_operators(rng) for _ in range(config.check_models)] + list(CHECKED_DESIGNS)
    points = [
        ModelPoint(
            build_architecture(operators, rng.choice(table.widths), sizes, vocab_size),
            rng.choice(table.contexts),
            rng.choice(table.batches),
        )
        for operators in designs
    ]
    fresh, timings = measure_together(config, sizes, vocab_size, points)
    models = [
        CheckedModel(
            operators=point.architecture.operators,
            width=point.architecture.hidden_size,
            context=point.context,
            batch=point.batch,
            measured_ms=timing.median_ms,
            predicted_ms=table.predict_ms(*point),
            summed_ms=fresh.predict_ms(*point),
        )
        for point, timing in zip(points, timings, strict=True)
    ]
    return summarize(models, drift_relative(table, fresh))


def drift_relative(before: LatencyTable, after: LatencyTable) -> float:
    """Median change of the entries that both tables hold."""
    then = {(e.operator, e.width, e.context, e.batch): e.median_ms for e in before.entries}
    now = {(e.operator, e.width, e.context, e.batch): e.median_ms for e in after.entries}
    return statistics.median(now[key] / then[key] - 1 for key in then.keys() & now.keys())


def summarize(models: Sequence[CheckedModel], drift: float) -> AdditivityCheck:
    """Errors over at least two models; every second one is fitted on, the others are held out."""
    held_out = models[1::2]
    overhead_ms = statistics.median(m.measured_ms - m.summed_ms for m in models[::2])
    errors = {
        "": [m.predicted_ms / m.measured_ms - 1 for m in models],
        "summed_": [m.summed_ms / m.measured_ms - 1 for m in models],
        "held_out_": [m.summed_ms / m.measured_ms - 1 for m in held_out],
        "corrected_": [(m.summed_ms + overhead_ms) / m.measured_ms - 1 for m in held_out],
    }
    medians = {f"{name}median_relative": statistics.median(map(abs, values)) for name, values in errors.items()}
    worst = {f"{name}worst_relative": max(map(abs, values)) for name, values in errors.items()}
    return AdditivityCheck(models=tuple(models), drift_relative=drift, overhead_ms=overhead_ms, **medians, **worst)


def _random_operators(rng: random.Random) -> str:
    return "".join(rng.choices(EXPORTABLE_OPERATORS, k=rng.randint(*RANDOM_DEPTHS)))
