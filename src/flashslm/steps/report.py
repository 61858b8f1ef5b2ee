"""report: the run's HTML report, from its artifacts, into the object store and MLflow."""

from pathlib import Path
from typing import Any

from flashslm.infra.storage.object_store import Manifest
from flashslm.profiling.latency_table import LatencyTable
from flashslm.reporting.html import RunArtifacts, figures, render
from flashslm.steps.context import StepContext
from flashslm.steps.headline import record_headline


def run(context: StepContext) -> dict[str, Any]:
    """Outputs `report`: report.html and lineage.json (name, uri, sha256, bytes of every artifact of the run),
    and the page itself for KFP."""
    artifacts = collect(context)
    drawn = figures(artifacts)
    with context.scratch() as directory:
        page = directory / "report.html"
        context.pages["page"] = render(artifacts, drawn)
        page.write_text(context.pages["page"], encoding="utf-8")
        context.mlflow_run.log_file(page)
        for name, figure in drawn.items():
            context.mlflow_run.log_figure(figure, f"plots/{name}.png")
        metadata = {"inputs": lineage(context), "decision": artifacts.verdict["decision"]}
        manifest = context.publish("report", directory, metadata)
        record_on_cluster(context, metadata["decision"], page)
    return {"report_bytes": manifest.bytes, "summary": f"report.html, {manifest.bytes / 1e3:.0f} kB"}


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
    table = read("latency_table", "latency_table.json")
    return RunArtifacts(
        name=context.config.name,
        latency_table=table,
        latency_check=read("latency_table", "check.json"),
        depth_width=read("latency_table", "depth_width.json"),
        scaling=read("scaling_law", "scaling_law.json"),
        architecture=read("architecture", "architecture.json"),
        history=read("architecture", "history.json"),
        pareto=read("architecture", "pareto.json"),
        best=read("architecture", "best.json"),
        ablation=read("ablation", "ablation.json"),
        step_time_ms=context.manifest("ablation").metadata["step_time_ms"],
        evaluation=read("evaluation", "evaluation.json"),
        export=export,
        verdict=read("verdict", "verdict.json"),
        latency_context=export["context"],
        latency_batch=export["batch"],
        device_name=LatencyTable.model_validate(table).device.name,
        lineage=lineage(context),
    )
