"""gate: compare the candidate with the recipe's limits and the champion."""

import json
from typing import Any

from flashslm.evaluation import items
from flashslm.evaluation.comparison import compare_items
from flashslm.infra.registry import model_registry
from flashslm.infra.registry.gate import Comparison, MeasuredModel, Verdict, decide
from flashslm.infra.registry.model_registry import ModelVersion
from flashslm.infra.storage.errors import ObjectMissing
from flashslm.infra.storage.object_store import Manifest
from flashslm.steps.context import StepContext


def run(context: StepContext) -> dict[str, Any]:
    """Outputs `verdict`: verdict.json; the result's `decision` is "promote" or "hold"."""
    limits = context.config.gate
    candidate = MeasuredModel.of(context.manifest("exported"), context.manifest("evaluation"))
    current = model_registry.champion(context.settings, limits.model_name)
    champion = MeasuredModel.model_validate(current.facts) if current else None
    compared = _compare_perplexity(context, current) if current else None
    return publish_verdict(context, decide(candidate, champion, current.version if current else "", limits, compared))


def publish_verdict(context: StepContext, verdict: Verdict) -> dict[str, Any]:
    """Publish the output `verdict`; returns a gate's result."""
    context.publish_json("verdict", {"verdict.json": verdict.model_dump(mode="json")}, {"decision": verdict.decision})
    return {
        "decision": verdict.decision,
        "summary": f"{verdict.decision}: {'; '.join(verdict.reasons) or 'all checks pass'}",
    }


def _compare_perplexity(context: StepContext, champion: ModelVersion) -> Comparison | None:
    """Document by document, if the champion's evaluation is known; without an interval if it read others."""
    metric = "test/perplexity"
    if champion.lineage.evaluation is None:
        return None
    try:
        before = _items(context, champion.lineage.evaluation)
    except ObjectMissing:
        return None
    after = _items(context, context.manifest("evaluation"))
    if metric not in before:
        return None
    return compare_items(metric, "the same documents", after[metric], before[metric], must_gain=True)


def _items(context: StepContext, evaluation: Manifest) -> dict[str, items.MetricItems]:
    file = context.fetch_manifest(evaluation) / items.ITEMS_FILE
    return items.load(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}
