"""fit_scaling_law: train the small (depth, width) family, fit the law, choose depth and width under the budget."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from flashslm.config import RunConfig
from flashslm.hardware import usable_cores
from flashslm.models.architecture import build_architecture, repeat_block
from flashslm.profiling.budget import latency_budget_ms
from flashslm.profiling.latency_table import LatencyTable
from flashslm.scaling.choice import Choice, InfeasibleBudget, choose_depth_width
from flashslm.scaling.holdout import leave_out_sizes
from flashslm.scaling.law import DepthWidthLaw, ScalingPoint, fit_law
from flashslm.steps.context import StepContext
from flashslm.steps.latency_tables import read_latency_table
from flashslm.steps.scaling_family import trained_family
from flashslm.training.side_by_side import worker_pool

_PROCESSES = 8  # that fit, at most: with more, starting them takes longer than what they do


def run(context: StepContext) -> dict[str, Any]:
    """Outputs `scaling_law`: scaling_law.json with the points, the law, its held-out errors, and what it chooses."""
    config = context.config
    vocab_size = context.manifest("dataset").metadata["vocab_size"]
    table = read_latency_table(context)
    family = trained_family(context)
    with worker_pool(min(_PROCESSES, usable_cores())) as pool:
        law = fit_law(family.points, config.scaling.bootstrap, config.seed, pool.map)
        left_out = leave_out_sizes(family.points, config.seed, pool.map)
    error = law.perplexity_error(family.holdout)
    budget_ms = latency_budget_ms(table, config.latency, config.model, vocab_size)
    choose = chooser(config, table, law, vocab_size, max(point.tokens for point in family.points))
    choice = choose(budget_ms)
    within_scatter = choice.within_scatter(law.residual_std_nats)
    found = {
        "points": with_fit(law, family.points),
        "holdout": with_fit(law, family.holdout),
        "law": law.model_dump(mode="json"),
        "constant_intervals": {name: law.constant_interval(name) for name in law.constants},
        "holdout_perplexity_error": error,
        "left_out_sizes": [size.model_dump() for size in left_out],
        "budget_ms": budget_ms,
        "choice": choice.model_dump(mode="json"),
        "ends": choice.ends(),
        "within_scatter": [other.model_dump(mode="json") for other in within_scatter],
        "other_budgets": [summarise(choose, factor * budget_ms) for factor in config.scaling.other_budgets],
    }
    facts = {"depth": choice.depth, "width": choice.width, "budget_ms": budget_ms}
    context.publish_json("scaling_law", {"scaling_law.json": found}, facts)
    worst_left_out = {"left_out_perplexity_error": max(size.perplexity_error for size in left_out)} if left_out else {}
    outside = f" (extrapolated in {' and '.join(choice.extrapolated)})" if choice.extrapolated else ""
    return worst_left_out | {
        "holdout_perplexity_error": error,
        "budget_ms": budget_ms,
        "chosen_depth": choice.depth,
        "chosen_width": choice.width,
        "summary": f"depth {choice.depth}, width {choice.width}{outside} within {budget_ms:.4g} ms/token; "
        f"{len(within_scatter)} of {sum(c.feasible for c in choice.candidates) - 1} other candidates in the budget "
        "within the scatter of the choice; "
        f"largest error of a held-out perplexity {error:.1%}" + "".join(f"; {end}" for end in choice.ends()),
    }


def with_fit(law: DepthWidthLaw, points: Sequence[ScalingPoint]) -> list[dict[str, Any]]:
    """Points beside what the law says of them, with its 90 % interval."""
    places = [(p, (p.depth, p.width, p.tokens)) for p in points]
    return [
        p.model_dump() | {"fitted_nats": law.predict(*place), "fitted_interval_nats": law.interval(*place)}
        for p, place in places
    ]


def chooser(
    config: RunConfig, table: LatencyTable, law: DepthWidthLaw, vocab_size: int, tokens: int
) -> Callable[[float], Choice]:
    """Of a budget in ms: lowest predicted loss among the (depth, width) grid whose table latency is within it."""

    def latency_ms(depth: int, width: int) -> float:
        operators = repeat_block(config.scaling.block, depth)
        architecture = build_architecture(operators, width, config.model, vocab_size)
        return table.predict_ms(architecture, config.latency.context, config.latency.batch)

    return partial(choose_depth_width, law, latency_ms, config.scaling.choice_depths, table.widths, tokens)


def summarise(choose: Callable[[float], Choice], budget_ms: float) -> dict[str, Any]:
    """What another budget would choose, or why nothing fits it."""
    try:
        return choose(budget_ms).model_dump(mode="json", exclude={"candidates"})
    except InfeasibleBudget as error:
        return {"budget_ms": budget_ms, "infeasible": str(error)}
