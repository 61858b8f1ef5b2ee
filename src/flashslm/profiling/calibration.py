"""A latency table's overheads, fitted on whole models: at the latency section's batch on models within the budget.

A sum leaves out what a model is beyond its operators, and by how much depends on the model's size (docs/search.md has
designs of 0.04 ms on an H200). So the models are drawn where the table is used, near the latency budget.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import chain, cycle, islice
from statistics import median

from flashslm.config import LatencyConfig
from flashslm.models.operator_spec import EXPORTABLE_OPERATORS, LM_HEAD
from flashslm.profiling.additivity import RANDOM_DEPTHS, compared, measure_beside, random_point, sample_of
from flashslm.profiling.budget import latency_budget_ms
from flashslm.profiling.latency_table import LatencyTable
from flashslm.profiling.measure import ModelPoint, available_bytes, l2_mb
from flashslm.profiling.overhead import fit_overhead, left_out_errors
from flashslm.profiling.plan import ProfilingPlan
from flashslm.profiling.whole_model import CheckedModel, StepOverhead

SEED = 1  # other models than those of the check
BUDGET_SHARES = (0.5, 1.0)  # of the latency budget, by the plain sum
DRAWS = 8  # for each model that is wanted: some repeat others, or do not fit


def calibrate(table: LatencyTable, plan: ProfilingPlan, latency: LatencyConfig | None = None) -> LatencyTable:
    """The table with the overhead of every batch, fitted on `calibration_models` whole models each, if it helps.

    The budget itself is then a prediction with that overhead (`latency_budget_ms`), and its reference is among the
    models. ValueError where the table lacks the reference.
    """
    if not plan.profiling.calibration_models:
        return table
    points, plain = calibration_points(table, plan, latency), table.without_overheads()
    timings, _, sums = measure_beside(plain, plan, points)
    models, cache_mb = compared(points, timings, plain, sums), l2_mb(plan.device)
    by_batch = [[model for model in models if model.batch == batch] for batch in table.batches]
    overheads = [_overhead(of_batch, cache_mb) for of_batch in by_batch if of_batch]
    fitted = plain.model_copy(update={"overheads": tuple(overheads)})
    return fitted.model_copy(update={"calibration": tuple(compared(points, timings, fitted, sums))})


def calibration_points(table: LatencyTable, plan: ProfilingPlan, latency: LatencyConfig | None) -> list[ModelPoint]:
    """`calibration_models` whole models of every batch; the same ones for the same table and sections.

    At the latency section's batch these are its reference and designs within its budget, at its context. At other
    batches, without a latency section, and where the budget admits too few, they are random as those of the check.
    """
    number, rng = plan.profiling.calibration_models, random.Random(SEED)
    points: list[ModelPoint] = []
    for batch in table.batches:
        within = _within_budget(table, plan, latency, rng) if latency and latency.batch == batch else ()
        found = list(dict.fromkeys(within))[:number]
        points += found + list(islice(_anywhere(table, plan, rng, batch), number - len(found)))
    return points


def _anywhere(table: LatencyTable, plan: ProfilingPlan, rng: random.Random, batch: int) -> Iterator[ModelPoint]:
    """Random models of the batch that fit the memory."""
    for _ in range(DRAWS * plan.profiling.calibration_models):
        with suppress(ValueError):
            yield random_point(table, plan, rng, (batch,))


def _within_budget(
    table: LatencyTable, plan: ProfilingPlan, latency: LatencyConfig, rng: random.Random
) -> Iterator[ModelPoint]:
    """The reference, if the budget is one's; then random designs at each width in turn, as many as fit the memory."""
    budget_ms = latency_budget_ms(table.without_overheads(), latency, plan.sizes, plan.vocab_size)
    designs = _random_designs(table, plan, latency, budget_ms, rng)
    if not latency.target_ms:
        designs = chain([(latency.reference_operators, latency.reference_width)], designs)
    memory_bytes = available_bytes(plan.device)
    for operators, width in designs:
        architecture = plan.architecture(operators, width)
        if plan.resident_bytes(architecture, latency.context, latency.batch) <= memory_bytes:
            yield ModelPoint(architecture, latency.context, latency.batch)


def _random_designs(
    table: LatencyTable, plan: ProfilingPlan, latency: LatencyConfig, budget_ms: float, rng: random.Random
) -> Iterator[tuple[str, int]]:
    """Operators and width: as many random operators as some width takes in a random share of the budget, and then, as
    in the search, the largest width within all of it.
    """
    each_ms = {}
    for width in table.widths:
        with suppress(ValueError):  # an entry was left out: it does not fit the memory
            every = plan.architecture(EXPORTABLE_OPERATORS, width)
            each_ms[width] = table.operator_ms(every, latency.context, latency.batch)

    def sum_ms(operators: str, width: int) -> float:
        return each_ms[width][LM_HEAD] + sum(each_ms[width][operator] for operator in operators)

    for width, _ in zip(cycle(each_ms), range(DRAWS * plan.profiling.calibration_models), strict=False):
        share_ms = rng.uniform(*BUDGET_SHARES) * budget_ms
        letters = "".join(rng.choices(EXPORTABLE_OPERATORS, k=RANDOM_DEPTHS[1]))
        depth = max((n for n in range(len(letters) + 1) if sum_ms(letters[:n], width) <= share_ms), default=0)
        if depth:
            yield letters[:depth], max(w for w in each_ms if sum_ms(letters[:depth], w) <= budget_ms)


def _overhead(models: Sequence[CheckedModel], cache_mb: float) -> StepOverhead:
    """Of the models of one batch."""
    samples = [sample_of(model, cache_mb) for model in models]
    summed, left_out = [abs(s.summed_ms / s.measured_ms - 1) for s in samples], left_out_errors(samples)
    return StepOverhead(
        batch=models[0].batch,
        models=len(models),
        l2_mb=cache_mb,
        summed_median_relative=median(summed),
        summed_worst_relative=max(summed),
        left_out_median_relative=median(left_out),
        left_out_worst_relative=max(left_out),
        **fit_overhead(samples)._asdict(),
    )
