"""The end of a run on a cluster, which its exit task says: what `flashslm run` does here after its last step."""

import logging

from flashslm.infra.kfp_facts import api_address
from flashslm.infra.mounted_environment import load_mounted_environment
from flashslm.infra.outages import Wait
from flashslm.infra.settings import Settings
from flashslm.infra.storage.object_store import ObjectStore
from flashslm.infra.tracking import kfp_run
from flashslm.infra.tracking.kfp_run import ParentRun
from flashslm.infra.tracking.mlflow_client import MlflowUnavailable, TrackingClient
from flashslm.infra.tracking.mlflow_runs import Status
from flashslm.launch import run_description
from flashslm.launch.kfp.api import Connection, KfpError, NotFound
from flashslm.launch.kfp.client import KfpClient
from flashslm.launch.kfp.run_steps import ENDED, state_of, steps_of
from flashslm.launch.progress import NOT_REGISTERED, StepRecord
from flashslm.steps.run_names import step_run_name

# KFP's words for the body of an exit handler: COMPLETE after success, RUNNING after a cancellation.
STATUSES: dict[str, Status] = {"COMPLETE": "FINISHED", "SUCCEEDED": "FINISHED", "FAILED": "FAILED"}
MLFLOW_PATIENCE_S = 120.0
_log = logging.getLogger(__name__)


def end_run(state: str) -> str:
    """End the MLflow run of this pod's KFP run by the final state of its tasks; returns a line with its address.

    Steps that came from the cache get a run too; runs that are still RUNNING are of pods that were killed. That MLflow
    stays away is logged and is not an error: the KFP run did what it was to do.
    """
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.INFO)
    load_mounted_environment()
    settings = Settings.from_env()
    store, client = ObjectStore(settings), KfpClient(Connection(api_address(), attempts=3), "")
    steps = _steps(client, settings.kfp_run_id)
    with Wait("MLflow", settings.tracking_uri, MLFLOW_PATIENCE_S) as wait:
        while True:
            try:
                parent = kfp_run.parent_run(settings, store)
                _end(settings, parent, steps, STATUSES.get(state, "KILLED"))
                _end_forgotten(client, settings, store)
                url = TrackingClient(settings).run_url(parent.run_id)
                _log.info("MLflow: %s", url)
                return f"MLflow: [{url}]({url})"
            except MlflowUnavailable as error:
                if not wait.pause(str(error)):
                    _log.warning("the run has no end in MLflow: %s", error)
                    return f"MLflow did not answer: {error}"


def _end(settings: Settings, parent: ParentRun, steps: list[StepRecord], status: Status) -> None:
    settings = settings.model_copy(update={"experiment": parent.experiment})
    if parent.is_ours:  # KFP's plug-in makes these itself
        cached = {step_run_name(step.label): step.name for step in steps if step.cached}
        kfp_run.record_cached_steps(settings, parent, cached)
    if any(step.name == "register_model" and step.state != "SUCCESS" for step in steps):
        kfp_run.correct_decision(settings, parent, "promote", NOT_REGISTERED)
    found = TrackingClient(settings).get_run(parent.run_id)
    run_description.describe(settings, parent.run_id, kfp_run.heading(found.info.run_name, found.data.tags))
    kfp_run.end(settings, parent, status)


def _end_forgotten(client: KfpClient, settings: Settings, store: ObjectStore) -> None:
    """End earlier runs that ended in KFP without their exit task, which the deadline of a whole run leaves no time."""
    for other_id in kfp_run.running_parents(settings) - {settings.kfp_run_id}:
        try:
            state = state_of(client.run(other_id))
        except NotFound:
            state = "CANCELED"  # deleted
        except KfpError as error:
            _log.warning("run %s: %s", other_id, error)
            continue
        if state in ENDED:
            other = settings.model_copy(update={"kfp_run_id": other_id})
            kfp_run.end(other, kfp_run.parent_run(other, store), STATUSES.get(state, "KILLED"))


def _steps(client: KfpClient, kfp_run_id: str) -> list[StepRecord]:
    """What KFP knows of the run's steps; nothing where it does not let a pod ask."""
    try:
        return steps_of(client, client.run(kfp_run_id))
    except KfpError as error:
        _log.warning("cached steps are not in MLflow: %s", error)
        return []
