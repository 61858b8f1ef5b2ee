"""`flashslm run`: embedded stack, MLflow parent run, the compiled pipeline, and what a person finds after it."""

import json
import os
import time
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from flashslm.config import RunConfig
from flashslm.infra.process.interrupts import Terminated, terminable
from flashslm.infra.process.private import private_files
from flashslm.infra.registry.promotion import deliver_pending
from flashslm.infra.settings import Settings, experiment_name
from flashslm.infra.stack import embedded_stack
from flashslm.infra.stack.daemons import StackError
from flashslm.infra.stack.embedded_stack import STUDIES
from flashslm.infra.state_files import check_sqlite
from flashslm.infra.storage.errors import StoreError
from flashslm.infra.storage.object_store import Manifest, ObjectStore
from flashslm.infra.storage.tree import check_path
from flashslm.infra.tracking import mlflow_runs, spool
from flashslm.infra.tracking.mlflow_client import MlflowError, TrackingClient
from flashslm.launch.compiling import pipeline_file, project_root
from flashslm.launch.local import parent_run, run_records
from flashslm.launch.local.healing import healed
from flashslm.launch.local.launcher import LocalResult, log_of, run_local
from flashslm.launch.local.report_outcome import carried_out, write_model_card, write_report
from flashslm.launch.local.run_directory import make_run_dir, point_latest
from flashslm.launch.processes import exclusive
from flashslm.steps.headline import headline, record_headline

FINAL_STATUS: dict[str, mlflow_runs.Status] = {"SUCCESS": "FINISHED", "FAILURE": "FAILED", "CANCELLED": "KILLED"}


@dataclass
class RunOutcome:
    """What `flashslm run` reports."""

    run_id: str
    state: str
    run_dir: Path
    mlflow_url: str
    duration_s: float
    local: LocalResult
    decision: str = ""
    headline: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, Manifest] = field(default_factory=dict)

    def failure(self) -> dict[str, Any]:
        failed = next((step for step in self.local.steps if step.state == "FAILURE"), None)
        if not failed:
            return {}
        return {"failed_step": failed.label, "error": failed.summary, "log": str(log_of(failed, self.local))}

    def facts(self) -> dict[str, Any]:
        report = self.run_dir / "report.html"
        return {
            "run_id": self.run_id,
            "state": self.state,
            "decision": self.decision,
            "duration_s": round(self.duration_s, 1),
            **self.failure(),
            "steps": len(self.local.steps),
            "cached_steps": sum(step.cached for step in self.local.steps),
            **self.headline,
            "run_dir": str(self.run_dir),
            "report": str(report) if report.is_file() else None,
            "mlflow_url": self.mlflow_url,
        }


def run_pipeline(
    config: RunConfig,
    home: Path,
    runs: Path = Path("runs"),
    quiet: bool = False,
    pipeline: str = "design_and_train",
) -> RunOutcome:
    """Run a pipeline from its compiled YAML; leave `runs/<run id>/` and, if it succeeded, `runs/latest`."""
    with terminable(), private_files():
        return _run_pipeline(config, home, runs, quiet, pipeline)


def _run_pipeline(config: RunConfig, home: Path, runs: Path, quiet: bool, pipeline: str) -> RunOutcome:
    console = Console(stderr=True, quiet=quiet)
    started = time.monotonic()
    pipeline_file(pipeline, project_root())  # a name that is wrong is an error before anything starts
    secrets = config.gate.promotion_hook.environment(os.environ)
    experiment_name()
    with exclusive(home / "kfp" / "lock"):
        # Another run is refused before anything is made for this one; run_local holds the lock while steps run.
        check_sqlite(home / STUDIES)
    console.print(f"[bold]{config.name}[/]: embedded S3 and MLflow …")
    embedded_stack.use_home(home)
    settings = parent_run.of_recipe(embedded_stack.up(home), config)
    mlflow_runs.sweep(settings)
    spool.backfill(settings)
    _deliver_pending(settings, config, secrets, console)
    run_dir = make_run_dir(runs, config)
    run_id = run_dir.name
    parent = parent_run.begin(settings, config, run_dir, pipeline)
    status: mlflow_runs.Status = "FAILED"
    outcome: RunOutcome | None = None
    try:
        mlflow_url = TrackingClient(settings).run_url(parent)
        run_records.begin(run_dir, pipeline, mlflow_url)
        console.print(f"run {run_id}: {run_dir}/", highlight=False, markup=False, soft_wrap=True)
        console.print(f"MLflow: {mlflow_url}", highlight=False, markup=False, soft_wrap=True)
        store = ObjectStore(settings)
        env = settings.as_env() | secrets | {"FLASHSLM_PARENT_RUN_ID": parent}

        def attempt() -> RunOutcome:
            local = run_local(config, run_dir, env, home, pipeline=pipeline, quiet=quiet)
            made = RunOutcome(run_id, local.state, run_dir, mlflow_url, 0.0, local)
            if "report" in local.outputs:
                with nullcontext() if local.state == "SUCCESS" else suppress(StoreError):  # the failure is to be seen
                    stored = _materialise(made, store, home)
                    if "evaluation" in made.artifacts:
                        _write_model_card(made, store, home, config)
                    made.duration_s = time.monotonic() - started
                    write_report(stored, made.run_dir, local, config, pipeline, made.duration_s, made.mlflow_url)
                made.decision = carried_out(made.decision, local)
            return made

        outcome = healed(attempt, store, home, run_dir, console)
        outcome.duration_s = time.monotonic() - started
        if outcome.artifacts and (run_dir / "report.html").is_file():
            page, source = outcome.run_dir / "report.html", config.data.source
            record_headline(settings, parent, outcome.artifacts, outcome.decision, source, page)
        status = FINAL_STATUS[outcome.state]
    except (Terminated, KeyboardInterrupt):
        status = "KILLED"
        run_records.finish(run_dir, {"state": "CANCELLED"})
        raise
    finally:
        _finish_in_mlflow(settings, home, parent, status, outcome, config)
    run_records.finish(run_dir, outcome.facts())
    if outcome.state == "SUCCESS":
        point_latest(runs, run_dir)
    _print_summary(console, outcome)
    console.print(f"MLflow: {mlflow_url}", highlight=False, markup=False, soft_wrap=True)
    return outcome


def _deliver_pending(settings: Settings, config: RunConfig, secrets: dict[str, str], console: Console) -> None:
    """Call the hook for a promotion whose process was killed before it did."""
    gate = config.gate
    with suppress(MlflowError, StoreError):  # the run itself says what is wrong with them
        outcome = deliver_pending(settings, gate.model_name, gate.promotion_hook, os.environ | secrets)
        if outcome:
            console.print(f"hook of an earlier promotion: {outcome}", highlight=False, markup=False, soft_wrap=True)


def _finish_in_mlflow(
    settings: Settings,
    home: Path,
    parent: str,
    status: mlflow_runs.Status,
    outcome: RunOutcome | None,
    config: RunConfig,
) -> None:
    _send_what_waits(settings, home)
    with suppress(MlflowError):
        parent_run.add_cached_steps(settings, parent, outcome.local.steps if outcome else [])
        if outcome and outcome.artifacts:
            parent_run.describe(settings, parent, config, outcome.run_dir)
    mlflow_runs.finish_run(settings, parent, status)
    with suppress(MlflowError):
        mlflow_runs.sweep(settings)  # an attempt that was killed could not end its own run


def _send_what_waits(settings: Settings, home: Path) -> None:
    """Send what MLflow could not take during the run; if it was ended meanwhile it is started again for that."""
    with suppress(MlflowError, StoreError, StackError):
        if spool.spooled():
            if settings.stack_file:
                embedded_stack.up(home)
            spool.backfill(settings)


def _materialise(outcome: RunOutcome, store: ObjectStore, home: Path) -> Path:
    """Copy the run's result next to it; the report's manifest knows every other artifact of the run.

    Returns the directory that the step `report` stored.
    """
    report = outcome.local.outputs["report"]
    run_dir, trees = outcome.run_dir, home / "trees"
    artifacts = outcome.artifacts = {"report": report} | {
        item["name"]: Manifest.model_validate({k: item[k] for k in Manifest.model_fields})
        for item in report.metadata["inputs"]
    }
    (run_dir / "artifacts").mkdir(exist_ok=True)
    for name, manifest in artifacts.items():
        check_path(name)  # the manifest is the store's word
        manifest.write(run_dir / "artifacts" / f"{name}.json")
    if "exported" in artifacts:  # a retraining may end before: with nothing new, or with a challenger that diverged
        chosen = store.get_tree(artifacts["chosen"], trees / artifacts["chosen"].sha256)
        _copy(chosen / "metrics.jsonl", run_dir / "metrics.jsonl")
        store.get_tree(artifacts["exported"], run_dir / "export")
    outcome.decision = report.metadata["decision"]
    outcome.headline = headline(artifacts)
    return store.get_tree(report, trees / report.sha256)


def _write_model_card(outcome: RunOutcome, store: ObjectStore, home: Path, config: RunConfig) -> None:
    evaluation = outcome.artifacts["evaluation"]
    evaluated = store.get_tree(evaluation, home / "trees" / evaluation.sha256)
    measured = dict(outcome.artifacts["exported"].metadata)
    if table := outcome.artifacts.get("latency_table"):  # a retraining has none
        file = store.get_tree(table, home / "trees" / table.sha256) / "latency_table.json"
        device = json.loads(file.read_text(encoding="utf-8"))["device"]
        measured["device"] = device["gpu"] or device["cpu"]
    write_model_card(outcome.run_dir, evaluated, measured, config)


def _copy(source: Path, target: Path) -> None:
    target.write_bytes(source.read_bytes())


def _print_summary(console: Console, outcome: RunOutcome) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("step", "state", "time", "result"):
        table.add_column(column, overflow="fold", justify="right" if column == "time" else "left")
    for step in outcome.local.steps:
        state = "cached" if step.cached else step.state.lower()
        table.add_row(step.label, state, f"{step.duration_s:.1f} s", step.summary)
    console.print(table)
    if outcome.state == "CANCELLED":
        console.print("stopped: the same command continues; finished steps come from the cache")
