"""gate: compare the candidate with the recipe's limits and the champion."""

from typing import Any

from flashslm.infra.registry import model_registry
from flashslm.infra.registry.gate import MeasuredModel, decide
from flashslm.steps.context import StepContext


def run(context: StepContext) -> dict[str, Any]:
    """Outputs `verdict`: verdict.json; the result's `decision` is "promote" or "hold"."""
    limits = context.config.gate
    candidate = MeasuredModel.of(context.manifest("exported"), context.manifest("evaluation"))
    current = model_registry.champion(context.settings, limits.model_name)
    champion = MeasuredModel.model_validate(current.facts) if current else None
    verdict = decide(candidate, champion, current.version if current else "", limits)
    context.publish_json("verdict", {"verdict.json": verdict.model_dump(mode="json")}, {"decision": verdict.decision})
    return {
        "decision": verdict.decision,
        "summary": f"{verdict.decision}: {'; '.join(verdict.reasons) or 'all checks pass'}",
    }
