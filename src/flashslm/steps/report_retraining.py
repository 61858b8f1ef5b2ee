"""report_retraining: what a retraining run changed, as HTML, into the object store and MLflow."""

from typing import Any

from flashslm.reporting.retraining import RetrainingArtifacts
from flashslm.steps.context import StepContext
from flashslm.steps.report import lineage, publish


def run(context: StepContext) -> dict[str, Any]:
    """Outputs `report` as the step report does; its manifest knows the decision too."""
    artifacts = collect(context)
    publish(context, artifacts, {"decision": artifacts.decision, "reasons": artifacts.reasons})
    why = "; ".join(artifacts.reasons) or "all checks pass"
    return {"summary": f"report.html: {artifacts.decision}: {why}"}


def collect(context: StepContext) -> RetrainingArtifacts:
    """Read every document the report shows; a run that held before there was a challenger has but its reason."""
    common: dict[str, Any] = {
        "name": context.config.name,
        "champion": context.read_json("champion", "champion.json"),
        "data": context.manifest("dataset").metadata,
        "lineage": lineage(context),
    }
    for early in ("dataset", "chosen"):  # not enough that is new, or a training that diverged
        if reason := context.manifest(early).metadata.get("reason"):
            return RetrainingArtifacts(decision="hold", reasons=[reason], **common)
    verdict = context.read_json("verdict", "verdict.json")
    return RetrainingArtifacts(
        decision=verdict["decision"],
        reasons=verdict["reasons"],
        evaluation=context.read_json("evaluation", "evaluation.json"),
        export=context.manifest("exported").metadata,
        training=context.manifest("chosen").metadata | context.read_json("chosen", "training.json"),
        verdict=verdict,
        **common,
    )
