"""The MLflow run of a whole local run, as a person finds it: name, description, recipe, results, cached steps."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from flashslm.config import RunConfig
from flashslm.infra.settings import DEFAULT_EXPERIMENT, Settings
from flashslm.infra.tracking import mlflow_runs
from flashslm.infra.tracking.mlflow_client import TrackingClient
from flashslm.infra.tracking.spool import NOTE_TAG, PARENT_TAG, RunRef
from flashslm.launch import run_description
from flashslm.launch.progress import StepRecord
from flashslm.steps.run_names import step_run_name

RUN_TAG = "flashslm.run_id"


def of_recipe(settings: Settings, config: RunConfig) -> Settings:
    """With an experiment of the recipe's name, unless the environment names one."""
    is_named = settings.experiment != DEFAULT_EXPERIMENT
    return settings if is_named else settings.model_copy(update={"experiment": config.name})


def begin(settings: Settings, config: RunConfig, run_dir: Path, pipeline: str) -> str:
    """Make the run; its parameters are what differs from the defaults, and the whole recipe is an artifact."""
    tags = {"recipe": config.name, "pipeline": pipeline, RUN_TAG: run_dir.name}
    tags[NOTE_TAG] = f"Run `{run_dir.name}` of recipe `{config.name}` by `{pipeline}`; files in `{run_dir}/`."
    run_id = mlflow_runs.start_parent_run(settings, f"{config.name} {_clock(run_dir)}", tags)
    with mlflow_runs.killed_by_a_signal(TrackingClient(settings), RunRef.of(settings, run_id)):
        mlflow_runs.run_of(settings, run_id).log_recipe(config)
    return run_id


def describe(settings: Settings, run_id: str, config: RunConfig, run_dir: Path) -> None:
    """Once the run has a result: its name ends with the architecture, its description says what came out.

    Raises MlflowError.
    """
    files = f"Report: artifact `report.html`, or `{run_dir}/report.html`. Recipe: artifact `config.yaml`."
    registry = f"Registry: `flashslm models list --name {config.gate.model_name}`"
    heading, name = f"Run `{run_dir.name}` of recipe `{config.name}`", f"{config.name} {_clock(run_dir)}"
    run_description.describe(settings, run_id, heading, [files, registry], name)


def add_cached_steps(settings: Settings, run_id: str, steps: Sequence[StepRecord]) -> None:
    """A child run for each step that came from the cache; it names the run that did the work. Raises MlflowError."""
    client = TrackingClient(settings)
    for step in steps:
        if step.cached:
            tags = {"step": step.name, "cached": "true", PARENT_TAG: run_id} | dict(_origin(client, step))
            child = mlflow_runs.start_parent_run(settings, step_run_name(step.label), tags)
            mlflow_runs.finish_run(settings, child, "FINISHED")


def _origin(client: TrackingClient, step: StepRecord) -> Iterator[tuple[str, str]]:
    """The newest run of the same step that was not cached itself."""
    condition = f"attributes.run_name = '{step_run_name(step.label)}' and attributes.status = 'FINISHED'"
    worked = [run for run in client.find_runs(condition) if "cached" not in run.data.tags]
    if worked:
        yield "cached.origin", worked[0].info.run_id
        note = f"From the cache: the work was done by run `{worked[0].info.run_id}`. {step.summary}"
        yield NOTE_TAG, note


def _clock(run_dir: Path) -> str:
    """Hour and minute at which the run began, by its id: 20261127-2341…"""
    hours = run_dir.name.partition("-")[2]
    return f"{hours[:2]}:{hours[2:4]}"
