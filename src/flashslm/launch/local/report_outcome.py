"""The run's report, made when the run is over: only then are the registration, every step and the times known."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flashslm.config import RunConfig
from flashslm.config.reference import differences
from flashslm.infra.state_files import write_whole
from flashslm.launch.local.launcher import LocalResult
from flashslm.launch.progress import NOT_REGISTERED, StepRecord
from flashslm.reporting.document import FILE, render_document
from flashslm.reporting.run_facts import Headline, RunFacts


def carried_out(decision: str, local: LocalResult) -> str:
    """What came of the gate's decision: a promotion is one when the model is registered."""
    return decision if decision != "promote" or _succeeded(_registration(local)) else NOT_REGISTERED


def headline(local: LocalResult) -> Headline:
    """Of a run whose gate said "promote": what the step `register_model` came to."""
    step = _registration(local)
    if _succeeded(step):
        return Headline("promote", f"Promoted: {step.summary if step else ''}")
    why = step.summary if step else "the run ended before the step register_model"
    return Headline("failed", f"Not promoted, though the gate's checks passed: the model was not registered: {why}")


def write_report(
    stored: Path,
    run_dir: Path,
    local: LocalResult,
    config: RunConfig,
    pipeline: str,
    duration_s: float,
    mlflow_url: str,
) -> None:
    """Make `run_dir`/report.html of what the step `report` stored and what is known only now."""
    document = json.loads((stored / FILE).read_text(encoding="utf-8"))
    made = json.loads((run_dir / "environment.json").read_text(encoding="utf-8"))
    decision = json.loads((run_dir / "artifacts" / "report.json").read_text(encoding="utf-8"))["metadata"]["decision"]
    facts = RunFacts(
        run_id=run_dir.name,
        pipeline=pipeline,
        started=made["started"],
        duration_s=duration_s,
        commit=made["commit"] or "",
        load=f"{made['load_average_1min']:.2f} in the minute before, {made['cpu_count']} cores",
        differences=differences(config),
        steps=[_step(step, run_dir) for step in local.steps],
        headline=headline(local) if decision == "promote" else None,
        links={"MLflow": mlflow_url} | dict(_files(run_dir)),
        commands=list(_commands(run_dir, config)),
    )
    write_whole(run_dir / "report.html", render_document(document, facts))


def write_model_card(run_dir: Path, evaluated: Path, exported: Mapping[str, Any], config: RunConfig) -> None:
    """Make `run_dir`/model-card.md: the export's README with the run's results; the export's own bytes stay."""
    from flashslm.export.model_card import completed

    readme = (run_dir / "export" / "huggingface" / "README.md").read_text(encoding="utf-8")
    evaluation = json.loads((evaluated / "evaluation.json").read_text(encoding="utf-8"))
    results = evaluation["results"]["first data"]["challenger"] if "results" in evaluation else evaluation
    hub = config.data.dataset if config.data.source == "huggingface" and not Path(config.data.dataset).exists() else ""
    name = config.gate.model_name
    write_whole(run_dir / "model-card.md", completed(readme, name, results, exported, hub or config.data.source, hub))


def _step(step: StepRecord, run_dir: Path) -> dict[str, Any]:
    facts = {"label": step.label, "state": step.state, "cached": step.cached, "duration_s": step.duration_s}
    is_there = step.log is not None and step.log.is_file() and step.log.is_relative_to(run_dir.resolve())
    log = step.log.relative_to(run_dir.resolve()).as_posix() if step.log and is_there else ""
    return facts | {"summary": step.summary, "log": log}


def _files(run_dir: Path) -> Iterator[tuple[str, str]]:
    """What lies beside the report, by a name for it."""
    named = {"recipe": "config.yaml", "environment": "environment.json", "metrics": "metrics.jsonl"}
    named |= {"logs": "logs", "model": "export", "model card": "model-card.md", "manifests": "artifacts"}
    yield from ((name, path) for name, path in named.items() if (run_dir / path).exists())


def _commands(run_dir: Path, config: RunConfig) -> Iterator[tuple[str, str]]:
    model, name = f"{run_dir}/export/huggingface", config.gate.model_name
    if (run_dir / "export").is_dir():
        yield "Let the model continue a text:", f"flashslm generate --model {model} --prompt 'def main'"
        yield "Measure its speed on this machine:", f"flashslm bench decode --model {model}"
    yield "What is registered, and what is champion:", f"flashslm models list --name '{name}'"
    yield "Make the previous champion champion again:", f"flashslm models rollback --name '{name}'"
    yield "Run the same recipe again:", f"flashslm run --config {run_dir}/config.yaml"


def _registration(local: LocalResult) -> StepRecord | None:
    return next((step for step in local.steps if step.name == "register_model"), None)


def _succeeded(step: StepRecord | None) -> bool:
    return step is not None and step.state == "SUCCESS"
