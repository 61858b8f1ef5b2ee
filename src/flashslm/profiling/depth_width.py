"""The depth-width sweep: whole models of equal parameters, deep or wide, timed per token (Nemotron-Flash, sec. 3.1)."""

import math
from contextlib import suppress

from pydantic import BaseModel, ConfigDict

from flashslm.models.accounting import parameters
from flashslm.models.architecture import Architecture, InfeasibleArchitecture, repeat_block
from flashslm.profiling.plan import ProfilingPlan

MAX_MISS = 0.25  # relative distance to the parameter budget beyond which models are not comparable


class SweepPoint(BaseModel):
    """Time per output token of one whole model that decodes `context` tokens, the first after the meta tokens.

    So the context grows from nothing: the times are means over it, of steps at a few lengths of a cache with room for
    all of them. Nothing is prefilled.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    budget_parameters: int
    depth: int
    width: int
    parameters: int
    context: int
    batch: int
    median_ms: float
    p10_ms: float
    p90_ms: float


class SkippedPoint(BaseModel):
    """A depth that has no width near the parameter budget."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    budget_parameters: int
    depth: int
    reason: str


class DepthWidthSweep(BaseModel):
    """All measured points and all skipped ones of one block's repeats."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    block: str
    points: tuple[SweepPoint, ...]
    skipped: tuple[SkippedPoint, ...]


def measure_depth_width(plan: ProfilingPlan) -> DepthWidthSweep:
    """Time every depth (token mixers) at the width nearest to each parameter budget, batch 1.

    Each decodes as many tokens as every one of `contexts`.
    """
    from flashslm.profiling.measure import ModelPoint, measure_models  # torch comes with it

    config = plan.profiling
    chosen: list[tuple[int, int, Architecture]] = []
    skipped = []
    for budget in config.sweep_parameters:
        for depth in config.sweep_depths:
            try:
                architecture = nearest_width(plan, repeat_block(config.sweep_block, depth), budget)
                chosen.append((budget, depth, architecture))
            except InfeasibleArchitecture as error:
                skipped.append(SkippedPoint(budget_parameters=budget, depth=depth, reason=str(error)))
    cases = [(*choice, context) for choice in chosen for context in config.contexts]
    growing = [ModelPoint(architecture, context, 1, growing=True) for _, _, architecture, context in cases]
    timings = measure_models(growing, config)
    points = [
        SweepPoint(
            budget_parameters=budget,
            depth=depth,
            width=architecture.hidden_size,
            parameters=parameters(architecture)["total"],
            context=context,
            batch=1,
            median_ms=timing.median_ms,
            p10_ms=timing.p10_ms,
            p90_ms=timing.p90_ms,
        )
        for (budget, depth, architecture, context), timing in zip(cases, timings, strict=True)
    ]
    return DepthWidthSweep(block=config.sweep_block, points=tuple(points), skipped=tuple(skipped))


def nearest_width(plan: ProfilingPlan, operators: str, budget_parameters: int) -> Architecture:
    """The architecture whose total parameters come nearest to the budget; InfeasibleArchitecture if none comes near."""
    candidates: list[tuple[float, Architecture]] = []
    head_dim = plan.sizes.head_dim
    # Beyond it the embedding alone is over the budget.
    widest = int((1 + MAX_MISS) * budget_parameters) // plan.vocab_size
    for width in range(head_dim, widest + 1, head_dim):
        with suppress(InfeasibleArchitecture):
            architecture = plan.architecture(operators, width)
            total = parameters(architecture)["total"]
            candidates.append((abs(total / budget_parameters - 1), architecture))
            if total > budget_parameters:
                break
    miss, nearest = min(candidates, key=lambda c: c[0], default=(math.inf, None))
    if nearest is None or miss > MAX_MISS:
        found = f"the nearest, {nearest.hidden_size}, misses it by {miss:.0%}" if nearest else "all are over it"
        raise InfeasibleArchitecture(
            f"no multiple of head size {head_dim} as width gives {budget_parameters:,} parameters: {found}"
        )
    return nearest
