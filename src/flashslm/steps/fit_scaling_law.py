"""fit_scaling_law: train the small (depth, width) family, fit the law, choose depth and width under the budget."""

import itertools
from collections.abc import Sequence
from typing import Any

from flashslm.config import RunConfig
from flashslm.hardware import pick_device
from flashslm.models.architecture import build_architecture, repeat_block
from flashslm.profiling.budget import latency_budget_ms
from flashslm.profiling.latency_table import LatencyTable
from flashslm.scaling.choice import Choice, choose_depth_width
from flashslm.scaling.family import train_family
from flashslm.scaling.law import DepthWidthLaw, ScalingPoint, fit_law
from flashslm.steps.context import StepContext


def run(context: StepContext) -> dict[str, Any]:
    """Outputs `scaling_law`: scaling_law.json with the points, the law, its error on the held-out model, the choice."""
    config = context.config
    vocab_size = context.manifest("dataset").metadata["vocab_size"]
    table = LatencyTable.model_validate(context.read_json("latency_table", "latency_table.json"))
    done, total = itertools.count(1), len(config.scaling.depths) * len(config.scaling.widths) + 1
    family = train_family(
        config.scaling,
        config.model,
        context.manifest("dataset"),
        context.fetch_manifest,
        seed=config.seed,
        device=pick_device(config.profiling.device),
        threads=config.profiling.threads,
        on_model=lambda text: context.events.emit("progress", text, done=next(done), total=total),
    )
    law = fit_law(family.points, bootstrap=config.scaling.bootstrap, seed=config.seed)
    holdout_error = law.relative_error(family.holdout)
    tokens = max(point.tokens for point in family.points)
    budget_ms = latency_budget_ms(table, config.latency, config.model, vocab_size)
    choice = choose(config, table, law, vocab_size, tokens, budget_ms)
    context.publish_json(
        "scaling_law",
        {
            "scaling_law.json": {
                "points": with_fit(law, family.points),
                "holdout": with_fit(law, family.holdout),
                "law": law.model_dump(mode="json"),
                "holdout_relative_error": holdout_error,
                "budget_ms": budget_ms,
                "choice": choice.model_dump(mode="json"),
            }
        },
        {"depth": choice.depth, "width": choice.width, "budget_ms": budget_ms},
    )
    return {
        "holdout_relative_error": holdout_error,
        "budget_ms": budget_ms,
        "chosen_depth": choice.depth,
        "chosen_width": choice.width,
        "summary": f"depth {choice.depth}, width {choice.width} within {budget_ms:.3f} ms/token; "
        f"largest held-out error {holdout_error:.1%}",
    }


def with_fit(law: DepthWidthLaw, points: Sequence[ScalingPoint]) -> list[dict[str, Any]]:
    """Points beside what the law says of them."""
    return [p.model_dump() | {"fitted_nats": law.predict(p.depth, p.width, p.tokens)} for p in points]


def choose(
    config: RunConfig, table: LatencyTable, law: DepthWidthLaw, vocab_size: int, tokens: int, budget_ms: float
) -> Choice:
    """Lowest predicted loss among the (depth, width) grid whose table latency is within the budget."""

    def latency_ms(depth: int, width: int) -> float:
        operators = repeat_block(config.scaling.block, depth)
        architecture = build_architecture(operators, width, config.model, vocab_size)
        return table.predict_ms(architecture, config.latency.context, config.latency.batch)

    return choose_depth_width(law, latency_ms, config.scaling.choice_depths, table.widths, tokens, budget_ms=budget_ms)
