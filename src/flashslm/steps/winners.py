"""The latency table against the designs that it let win: a search finds what a table promises too much for."""

from collections.abc import Sequence
from typing import Any

from flashslm.config import SizeChoice
from flashslm.models.architecture import build_architecture
from flashslm.profiling.additivity import compared
from flashslm.profiling.measure import ModelPoint, measure_models
from flashslm.steps.context import StepContext
from flashslm.steps.latency_tables import read_latency_table

MAX_WINNERS = 4  # the chosen design among them


def measure_winners(
    context: StepContext, best: dict[str, Any], front: Sequence[dict[str, Any]], budget_ms: float
) -> list[dict[str, Any]]:
    """Whole decode steps of the chosen trial and of the best ones of the Pareto front within the budget, in that order.

    Each with the table's time and `relative_error`, the table's over the measured one, minus 1.
    """
    config, latency = context.config, context.config.latency
    within = sorted((t for t in front if t["latency_ms"] <= budget_ms), key=lambda t: t["loss_nats"])
    chosen = list(dict.fromkeys(_design(trial) for trial in [best, *within]))[:MAX_WINNERS]
    vocab_size = context.manifest("dataset").metadata["vocab_size"]
    built = [
        build_architecture(operators, width, sizes.applied_to(config.model), vocab_size)
        for operators, width, sizes in chosen
    ]
    points = [ModelPoint(architecture, latency.context, latency.batch) for architecture in built]
    table = read_latency_table(context)
    models = compared(points, measure_models(points, config.profiling), table, table)
    return [
        model.model_dump(mode="json")
        | {"relative_error": model.predicted_ms / model.measured_ms - 1}
        | ({"sizes": sizes.given()} if sizes.given() else {})
        for model, (_, _, sizes) in zip(models, chosen, strict=True)
    ]


def _design(trial: dict[str, Any]) -> tuple[str, int, SizeChoice]:
    return trial["operators"], trial["width"], SizeChoice(**trial.get("sizes", {}))
