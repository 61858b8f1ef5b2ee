"""`flashslm run`: embedded stack, MLflow parent run, the compiled pipeline, and what a person finds after it."""

import json
import os
import platform
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from flashslm.config import RunConfig
from flashslm.config import file as config_file
from flashslm.infra.process.interrupts import Terminated, terminable
from flashslm.infra.process.private import private_files
from flashslm.infra.settings import Settings
from flashslm.infra.stack import embedded_stack
from flashslm.infra.storage.object_store import Manifest, ObjectStore
from flashslm.infra.storage.tree import check_path
from flashslm.infra.tracking import mlflow_runs
from flashslm.infra.tracking.mlflow_api import MlflowUnavailable
from flashslm.launch.compiling import PACKAGE, code_digest
from flashslm.launch.local.launcher import LocalResult, run_local
from flashslm.launch.processes import exclusive

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
        return {"failed_step": failed.label, "error": failed.summary, "log": str(failed.log or self.local.log)}

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


def drop_lost_artifacts(store: ObjectStore, home: Path) -> None:
    """Make steps run again whose cached artifact is no longer in the object store: a hit needs the artifact's file."""
    present = set(store.list("cas/"))
    for file in (home / "kfp" / "artifacts").rglob("*"):
        manifest = _manifest_in(file)
        if manifest and store.index_key(manifest) not in present:
            file.unlink()


def _manifest_in(file: Path) -> Manifest | None:
    try:
        return Manifest.read(file) if file.is_file() else None
    except ValueError:
        return None


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
    secrets = config.gate.promotion_hook.environment(os.environ)
    with exclusive(home / "kfp" / "lock"):
        pass  # refused before anything is made for this run; run_local holds the lock while steps run
    console.print(f"[bold]{config.name}[/]: embedded S3 and MLflow …")
    embedded_stack.use_home(home)
    settings = embedded_stack.up(home)
    mlflow_runs.sweep(settings)
    mlflow_runs.backfill(settings)
    run_id = time.strftime("%Y%m%d-%H%M%S-") + config.name
    run_dir = _make_run_dir(runs, run_id, config)
    parent = mlflow_runs.start_parent_run(settings, run_id, tags={"recipe": config.name, "pipeline": pipeline})
    mlflow_runs.log_to_run(settings, parent, params=config.model_dump(mode="json"))
    status: mlflow_runs.Status = "FAILED"
    try:
        drop_lost_artifacts(ObjectStore(settings), home)
        env = settings.as_env() | secrets | {"FLASHSLM_PARENT_RUN_ID": parent}
        local = run_local(config, run_dir, env, home, pipeline=pipeline, quiet=quiet)
        url, duration_s = embedded_stack.run_url(settings, parent), time.monotonic() - started
        outcome = RunOutcome(run_id, local.state, run_dir, url, duration_s, local)
        if local.state == "SUCCESS" and "report" in local.outputs:
            _materialise(outcome, ObjectStore(settings), home)
            _record(outcome, settings, parent, config)
        status = FINAL_STATUS[local.state]
    except (Terminated, KeyboardInterrupt):
        status = "KILLED"
        raise
    finally:
        mlflow_runs.finish_run(settings, parent, status)
        with suppress(MlflowUnavailable):
            mlflow_runs.sweep(settings)  # an attempt that was killed could not end its own run
    if outcome.state == "SUCCESS":
        _point_latest(runs, run_dir)
    _print_summary(console, outcome)
    return outcome


def _record(outcome: RunOutcome, settings: Settings, parent: str, config: RunConfig) -> None:
    """What makes pipeline runs comparable in MLflow's UI: figures, verdict, data, report."""
    tags = {"decision": outcome.decision}
    if "operators" in outcome.headline:
        tags["operators"] = outcome.headline["operators"]
    mlflow_runs.log_to_run(settings, parent, metrics=_numbers(outcome.headline), tags=tags)
    dataset = outcome.artifacts["dataset"]
    mlflow_runs.log_dataset_to_run(settings, parent, config.data.source, dataset.uri, dataset.sha256)
    mlflow_runs.attach_file(settings, parent, outcome.run_dir / "report.html")


def _make_run_dir(runs: Path, run_id: str, config: RunConfig) -> Path:
    run_dir = runs / run_id
    run_dir.mkdir(parents=True)
    (run_dir / "config.yaml").write_text(config_file.dump(config), encoding="utf-8")
    (run_dir / "environment.json").write_text(json.dumps(environment(), indent=1), encoding="utf-8")
    return run_dir


def environment() -> dict[str, Any]:
    """Where the run was made: commit, code digest, Python, platform, versions of every installed package."""
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=PACKAGE, capture_output=True, text=True, check=False)
    return {
        "commit": git.stdout.strip() or None,
        "code_digest": code_digest(),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "packages": dict(sorted((d.metadata["Name"], d.version) for d in distributions())),
    }


def _materialise(outcome: RunOutcome, store: ObjectStore, home: Path) -> None:
    """Copy the run's result next to it; the report's manifest knows every other artifact of the run."""
    report = outcome.local.outputs["report"]
    run_dir, trees = outcome.run_dir, home / "trees"
    artifacts = outcome.artifacts = {"report": report} | {
        item["name"]: Manifest.model_validate({k: item[k] for k in Manifest.model_fields})
        for item in report.metadata["inputs"]
    }
    (run_dir / "artifacts").mkdir()
    for name, manifest in artifacts.items():
        check_path(name)  # the manifest is the store's word
        manifest.write(run_dir / "artifacts" / f"{name}.json")
    _copy(store.get_tree(report, trees / report.sha256) / "report.html", run_dir / "report.html")
    if "exported" in artifacts:  # a retraining may end before: with nothing new, or with a challenger that diverged
        chosen = store.get_tree(artifacts["chosen"], trees / artifacts["chosen"].sha256)
        _copy(chosen / "metrics.jsonl", run_dir / "metrics.jsonl")
        store.get_tree(artifacts["exported"], run_dir / "export")
    outcome.decision = report.metadata["decision"]
    outcome.headline = {
        key: artifacts[name].metadata[key]
        for name, keys in _HEADLINE.items()
        for key in keys
        if name in artifacts and key in artifacts[name].metadata
    }


_HEADLINE = {
    "evaluation": ("perplexity", "validation_loss_nats", "bits_per_byte", "new_perplexity"),
    "dataset": ("unigram_entropy_nats", "reason"),
    "chosen": ("reason",),
    "exported": ("latency_ms", "parameters", "operators"),
}


def _copy(source: Path, target: Path) -> None:
    target.write_bytes(source.read_bytes())


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    return {key: float(value) for key, value in values.items() if isinstance(value, int | float)}


def _point_latest(runs: Path, run_dir: Path) -> None:
    """Move the link in one step, so that a reader always finds one."""
    fresh = runs / f".latest-{os.getpid()}"
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(run_dir.name)
    fresh.replace(runs / "latest")


def _print_summary(console: Console, outcome: RunOutcome) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("step", "state", "time", "result"):
        table.add_column(column, overflow="fold", justify="right" if column == "time" else "left")
    for step in outcome.local.steps:
        state = "cached" if step.cached else step.state.lower()
        table.add_row(step.label, state, f"{step.duration_s:.1f} s", step.summary)
    console.print(table)
