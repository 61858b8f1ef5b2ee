"""The MLflow run of a whole local run, as a person finds it: name, description, recipe, results, cached steps."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flashslm.config import RunConfig
from flashslm.config.reference import differences
from flashslm.infra.settings import DEFAULT_EXPERIMENT, Settings
from flashslm.infra.tracking import mlflow_runs
from flashslm.infra.tracking.mlflow_client import TrackingClient
from flashslm.infra.tracking.spool import PARENT_TAG
from flashslm.launch.progress import StepRecord

NOTE_TAG, RUN_TAG = "mlflow.note.content", "flashslm.run_id"
_FIGURES = ("test/perplexity", "test/bits_per_byte", "latency_ms", "parameters")


def of_recipe(settings: Settings, config: RunConfig) -> Settings:
    """With an experiment of the recipe's name, unless the environment names one."""
    is_named = settings.experiment != DEFAULT_EXPERIMENT
    return settings if is_named else settings.model_copy(update={"experiment": config.name})


def begin(settings: Settings, config: RunConfig, run_dir: Path, pipeline: str) -> str:
    """Make the run; its parameters are what differs from the defaults, and the whole recipe is an artifact."""
    tags = {"recipe": config.name, "pipeline": pipeline, RUN_TAG: run_dir.name}
    tags[NOTE_TAG] = f"Run `{run_dir.name}` of recipe `{config.name}` by `{pipeline}`; files in `{run_dir}/`."
    run_id = mlflow_runs.start_parent_run(settings, f"{config.name} {_clock(run_dir)}", tags)
    run = mlflow_runs.run_of(settings, run_id)
    run.log_params(differences(config))
    run.log_file(run_dir / "config.yaml")
    return run_id


def describe(
    settings: Settings, run_id: str, config: RunConfig, run_dir: Path, decision: str, figures: Mapping[str, Any]
) -> None:
    """Once the run has a result: its name ends with the architecture, its description says what came out."""
    lines = [f"**{decision}** · run `{run_dir.name}` of recipe `{config.name}`", ""]
    lines += [f"- {name}: {_shown(figures[name])}" for name in _FIGURES if name in figures]
    if "operators" in figures:
        lines.append(f"- operators: {figures['operators']}")
    lines += ["", f"Report: artifact `report.html`, or `{run_dir}/report.html`. Recipe: artifact `config.yaml`.", ""]
    lines += [f"Registry: `flashslm models list --name {config.gate.model_name}`"]
    name = f"{config.name} {_clock(run_dir)}"
    if "operators" in figures:
        width = f" w{figures['width']}" if "width" in figures else ""
        name += f" · {figures['operators']}{width}"
    mlflow_runs.run_of(settings, run_id).set_tags({NOTE_TAG: "\n".join(lines), "mlflow.runName": name})


def add_cached_steps(settings: Settings, run_id: str, steps: Sequence[StepRecord]) -> None:
    """A child run for each step that came from the cache; it names the run that did the work. Raises MlflowError."""
    client = TrackingClient(settings)
    for step in steps:
        if step.cached:
            tags = {"step": step.name, "cached": "true", PARENT_TAG: run_id} | dict(_origin(client, step))
            child = mlflow_runs.start_parent_run(settings, step.label, tags)
            mlflow_runs.finish_run(settings, child, "FINISHED")


def _origin(client: TrackingClient, step: StepRecord) -> Iterator[tuple[str, str]]:
    """The newest run of the same step that was not cached itself."""
    condition = f"attributes.run_name = '{step.label}' and attributes.status = 'FINISHED'"
    worked = [run for run in client.find_runs(condition) if "cached" not in run.data.tags]
    if worked:
        yield "cached.origin", worked[0].info.run_id
        note = f"From the cache: the work was done by run `{worked[0].info.run_id}`. {step.summary}"
        yield NOTE_TAG, note


def _shown(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.5g}"


def _clock(run_dir: Path) -> str:
    """Hour and minute at which the run began, by its id: 20261127-2341…"""
    hours = run_dir.name.partition("-")[2]
    return f"{hours[:2]}:{hours[2:4]}"
