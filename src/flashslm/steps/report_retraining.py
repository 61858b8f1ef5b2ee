"""report_retraining: what a retraining run changed, as HTML, into the object store and MLflow."""

from typing import Any

from flashslm.reporting.retraining import RetrainingArtifacts, render_retraining
from flashslm.steps.context import StepContext
from flashslm.steps.report import lineage


def run(context: StepContext) -> dict[str, Any]:
    """Outputs `report`: report.html; its manifest knows the decision and every artifact of the run."""
    artifacts = collect(context)
    with context.scratch() as directory:
        page = directory / "report.html"
        page.write_text(render_retraining(artifacts), encoding="utf-8")
        context.task.log_file(page)
        metadata = {"inputs": lineage(context), "decision": artifacts.decision, "reasons": artifacts.reasons}
        context.publish("report", directory, metadata)
    why = "; ".join(artifacts.reasons) or "all checks pass"
    return {"summary": f"report.html: {artifacts.decision}: {why}"}


def collect(context: StepContext) -> RetrainingArtifacts:
    """Read every document the report shows; without a challenger there are those of champion and data alone."""
    common: dict[str, Any] = {
        "name": context.config.name,
        "champion": context.read_json("champion", "champion.json"),
        "data": context.manifest("dataset").metadata,
        "lineage": lineage(context),
    }
    if "reason" in common["data"]:  # prepare_new_data held
        return RetrainingArtifacts(decision="hold", reasons=[common["data"]["reason"]], **common)
    verdict = context.read_json("verdict", "verdict.json")
    return RetrainingArtifacts(
        decision=verdict["decision"],
        reasons=verdict["reasons"],
        evaluation=context.read_json("evaluation", "evaluation.json"),
        export=context.read_json("exported", "export.json"),
        training=context.read_json("chosen", "training.json"),
        verdict=verdict,
        **common,
    )
