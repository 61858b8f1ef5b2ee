"""report: the run's HTML report, from its artifacts, into the object store and MLflow."""

from pathlib import Path
from typing import Any

from flashslm.infra.storage.object_store import Manifest
from flashslm.models.architecture import Architecture
from flashslm.profiling.latency_table import LatencyTable
from flashslm.reporting.document import FILE, document, render_document
from flashslm.reporting.html import RunArtifacts
from flashslm.reporting.plots import figures
from flashslm.reporting.retraining import RetrainingArtifacts
from flashslm.steps.context import StepContext, write_json
from flashslm.steps.headline import record_headline


def run(context: StepContext) -> dict[str, Any]:
    """Outputs `report`: report.html, and report.json, of which the launcher makes the page again after the run; its
    manifest knows every artifact of the run. And the page itself for KFP."""
    artifacts = collect(context)
    for name, figure in figures(artifacts).items():
        context.mlflow_run.log_figure(figure, f"plots/{name}.png")
    size = publish(context, artifacts, {"decision": artifacts.verdict["decision"]})
    return {"report_bytes": size, "summary": f"report.html, {size / 1e3:.0f} kB"}


def publish(context: StepContext, artifacts: RunArtifacts | RetrainingArtifacts, metadata: dict[str, Any]) -> int:
    """Store page and data; returns their bytes."""
    stored = document(artifacts)
    with context.scratch() as directory:
        page = directory / "report.html"
        context.pages["page"] = render_document(stored)
        page.write_text(context.pages["page"], encoding="utf-8")
        write_json(directory / FILE, stored)
        context.mlflow_run.log_file(page)
        size = context.publish("report", directory, {"inputs": lineage(context)} | metadata).bytes
        record_on_cluster(context, metadata["decision"], page)
    return size


def record_on_cluster(context: StepContext, decision: str, page: Path) -> None:
    """Put the run's figures on its MLflow run; here the launcher does so."""
    settings = context.settings
    if settings.kfp_run_id and settings.parent_run_id:
        artifacts = {name: context.manifest(name) for name in context.inputs}
        source = str(artifacts["dataset"].metadata.get("source", "dataset"))
        record_headline(settings, settings.parent_run_id, artifacts, decision, source, page)


def lineage(context: StepContext) -> list[dict[str, Any]]:
    named: list[tuple[str, Manifest]] = [(name, context.manifest(name)) for name in context.inputs]
    return [{"name": name} | manifest.model_dump() for name, manifest in named]


def collect(context: StepContext) -> RunArtifacts:
    """Read every document the report shows."""
    read = context.read_json
    export = context.manifest("exported").metadata
    table = LatencyTable.model_validate(read("latency_table", "latency_table.json"))
    architecture = Architecture.model_validate(read("architecture", "architecture.json"))
    return RunArtifacts(
        name=context.config.name,
        data=context.manifest("dataset").metadata,
        latency_table=table.model_dump(mode="json"),
        latency_check=read("latency_table", "check.json"),
        depth_width=read("latency_table", "depth_width.json"),
        scaling=read("scaling_law", "scaling_law.json"),
        architecture=architecture.model_dump(mode="json"),
        operator_ms=table.operator_ms(architecture, export["context"], export["batch"]),
        history=read("architecture", "history.json"),
        pareto=read("architecture", "pareto.json"),
        winners=read("architecture", "winners.json"),
        best=read("architecture", "best.json"),
        edges=read("architecture", "edges.json"),
        finalists=read("architecture", "finalists.json"),
        ablation=read("ablation", "ablation.json"),
        step_time_ms=context.manifest("ablation").metadata["step_time_ms"],
        evaluation=read("evaluation", "evaluation.json"),
        export=export,
        verdict=read("verdict", "verdict.json"),
        latency_context=export["context"],
        latency_batch=export["batch"],
        device_name=table.device.name,
        lineage=lineage(context),
    )
