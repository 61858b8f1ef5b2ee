"""The MLflow run of a KFP run: one parent of all its pods' runs, made by whichever pod comes first.

A pod knows its KFP run by a label, not by an argument, which would be part of its cache key. The parent's id is an
object in the store, and a lease there (conditional puts) decides who makes it. Where KFP's own plug-in for MLflow has
made a run for the KFP run, that is the parent: both carry the tag `kfp.pipeline_run_id`.
"""

import json
import logging
import os
import time
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import urllib3
from pydantic import ValidationError

from flashslm.config import RunConfig
from flashslm.infra.settings import Settings
from flashslm.infra.storage.lease import hold
from flashslm.infra.storage.object_store import ObjectStore
from flashslm.infra.tracking import mlflow_runs
from flashslm.infra.tracking.mlflow_api import MlflowApi, MlflowUnavailable
from flashslm.infra.tracking.spool import PARENT_TAG

RUN_TAG = "kfp.pipeline_run_id"  # of the parent; KFP's plug-in sets the same
OURS_TAG = "flashslm.pipeline_run"  # of a parent that a pod made
STEP_TAG = "flashslm.kfp_run_id"  # of each step, so that one without a parent (MLflow was away) gets it in the end
# Optional: where pods reach KFP's API, and where people see KFP and MLflow.
KFP_API, KFP_URL, MLFLOW_URL = "FLASHSLM_KFP_API", "FLASHSLM_KFP_URL", "FLASHSLM_MLFLOW_URL"
_TOKEN = "/var/run/secrets/kubeflow/pipelines/token"  # where Kubeflow's PodDefault projects it
_LEASE_S = 120.0
_BUSY = [429, 500, 502, 503, 504]
_log = logging.getLogger(__name__)


class ParentRun(NamedTuple):
    """The MLflow run of a KFP run, the experiment that it is in, by name, and whether a pod of ours made it."""

    run_id: str
    experiment: str
    is_ours: bool


class KfpFacts(NamedTuple):
    """What KFP knows of a run; of one that it does not tell about, its id alone."""

    name: str
    started_ms: int | None
    tags: dict[str, str]
    parameters: dict[str, Any]

    @property
    def recipe(self) -> str:
        """The recipe's name; empty if KFP does not tell it."""
        return str(self.parameters.get("name", ""))


def joined(settings: Settings, store: ObjectStore) -> Settings:
    """The settings of a pod of a KFP run: with the parent run and its experiment.

    While MLflow is away it cannot be made: the step's run carries the tag STEP_TAG and is nested when the run ends.
    """
    try:
        parent = parent_run(settings, store)
    except MlflowUnavailable as error:
        _log.warning("%s; this step's run is put below its KFP run's when that ends", error)
        return settings.model_copy(update={"experiment": facts_of(settings.kfp_run_id).recipe or settings.experiment})
    _log.info("MLflow: %s", run_url(settings, parent.run_id))
    return settings.model_copy(update={"parent_run_id": parent.run_id, "experiment": parent.experiment})


def parent_run(settings: Settings, store: ObjectStore) -> ParentRun:
    """The parent of a KFP run's steps, made if there is none yet. Raises MlflowError, StoreError."""
    key = f"mlflow-runs/{settings.kfp_run_id}.json"
    if found := store.get_json(key):
        return ParentRun(**found[0])
    with hold(store, f"mlflow-runs/{settings.kfp_run_id}.lease.json", ttl_s=_LEASE_S, wait_s=2 * _LEASE_S):
        if found := store.get_json(key):
            return ParentRun(**found[0])
        facts = facts_of(settings.kfp_run_id)
        parent = _known_parent(settings) or _new_parent(settings, facts)
        settings = settings.model_copy(update={"experiment": parent.experiment})
        mlflow_runs.log_to_run(settings, parent.run_id, tags=facts.tags, params=recipe_of(facts.parameters))
        store.put_json(key, parent._asdict())
    return parent


def run_url(settings: Settings, run_id: str) -> str:
    """The run's page where people see MLflow."""
    return f"{(os.environ.get(MLFLOW_URL) or settings.tracking_uri).rstrip('/')}/#/runs/{run_id}"


def _known_parent(settings: Settings) -> ParentRun | None:
    """The run that KFP's plug-in has made, or a pod that did not come to note it."""
    api = MlflowApi(settings)
    experiments = {str(e["experiment_id"]): str(e["name"]) for e in api.search_experiments()}
    found = api.search_runs(f"tags.{RUN_TAG} = '{settings.kfp_run_id}'", list(experiments))
    roots = [run for run in found if PARENT_TAG not in _tags_of(run)]
    if not roots:
        return None
    oldest = roots[-1]
    return ParentRun(
        oldest["info"]["run_id"], experiments[oldest["info"]["experiment_id"]], OURS_TAG in _tags_of(oldest)
    )


def _new_parent(settings: Settings, facts: KfpFacts) -> ParentRun:
    experiment = facts.recipe or settings.experiment
    api = MlflowApi(settings.model_copy(update={"experiment": experiment}))
    tags = [{"key": RUN_TAG, "value": settings.kfp_run_id}, {"key": OURS_TAG, "value": "true"}]
    body: dict[str, Any] = {"experiment_id": api.experiment_id, "run_name": facts.name, "tags": tags}
    if facts.started_ms:
        body["start_time"] = facts.started_ms
    run = api.post("runs/create", body, repeatable=False)["run"]
    return ParentRun(str(run["info"]["run_id"]), experiment, is_ours=True)


def record_cached_steps(settings: Settings, parent: ParentRun, cached: dict[str, str]) -> None:
    """Make a run for each step (label -> step) that came from the cache, unless there is one."""
    api = MlflowApi(settings)
    known = {run["info"]["run_name"] for run in api.search_runs(f"tags.{PARENT_TAG} = '{parent.run_id}'")}
    for label, step in cached.items():
        if label in known:
            continue
        tags = {"step": step, "cached": "true", PARENT_TAG: parent.run_id, STEP_TAG: settings.kfp_run_id}
        listed = [{"key": key, "value": value} for key, value in tags.items()]
        now_ms = int(time.time() * 1000)
        body = {"experiment_id": api.experiment_id, "run_name": label, "start_time": now_ms, "tags": listed}
        made = api.post("runs/create", body, repeatable=False)["run"]["info"]["run_id"]
        api.post("runs/update", {"run_id": made, "status": "FINISHED", "end_time": now_ms})


def correct_decision(settings: Settings, parent: ParentRun, said: str, happened: str) -> None:
    """Replace the decision on the parent where something else came of it."""
    run = MlflowApi(settings).get("runs/get", run_id=parent.run_id)["run"]
    if _tags_of(run).get("decision") == said:
        mlflow_runs.log_to_run(settings, parent.run_id, tags={"decision": happened})


def end(settings: Settings, parent: ParentRun, status: mlflow_runs.Status) -> None:
    """End the parent. Steps (and their trials) that are RUNNING are of pods that were killed; a step without a parent
    was begun while MLflow was away. Raises MlflowError.
    """
    api = MlflowApi(settings)
    experiments = [str(e["experiment_id"]) for e in api.search_experiments()]
    for run in api.search_runs(f"tags.{STEP_TAG} = '{settings.kfp_run_id}'", experiments):
        run_id = str(run["info"]["run_id"])
        if PARENT_TAG not in _tags_of(run):
            api.post("runs/set-tag", {"run_id": run_id, "key": PARENT_TAG, "value": parent.run_id})
        if run["info"]["status"] == "RUNNING":
            for trial in api.search_runs(f"tags.{PARENT_TAG} = '{run_id}'", experiments):
                _end_as_killed(api, trial)
            _end_as_killed(api, run)
    api.post("runs/update", {"run_id": parent.run_id, "status": status, "end_time": int(time.time() * 1000)})


def running_parents(settings: Settings) -> set[str]:
    """The KFP runs whose parents, made by pods, are RUNNING."""
    api = MlflowApi(settings)
    experiments = [str(e["experiment_id"]) for e in api.search_experiments()]
    found = api.search_runs(f"attributes.status = 'RUNNING' and tags.{OURS_TAG} = 'true'", experiments)
    return {_tags_of(run)[RUN_TAG] for run in found}


def _end_as_killed(api: MlflowApi, run: dict[str, Any]) -> None:
    if run["info"]["status"] == "RUNNING":
        body = {"run_id": run["info"]["run_id"], "status": "KILLED", "end_time": int(time.time() * 1000)}
        api.post("runs/update", body)


def _tags_of(run: dict[str, Any]) -> dict[str, str]:
    return {tag["key"]: tag["value"] for tag in run["data"].get("tags", [])}


def recipe_of(parameters: dict[str, Any]) -> dict[str, Any]:
    """The recipe that a KFP run's parameters hold: all of its values but the platform's, those of a local run."""
    values = {name: parameters[name] for name in RunConfig.model_fields if name in parameters}
    if "seed" in values:
        values["seed"] = int(values["seed"])  # KFP's numbers are floats
    try:
        return RunConfig.model_validate(values).model_dump(mode="json", exclude={"platform"})
    except ValidationError:  # a long section is in the object store
        return values


def facts_of(kfp_run_id: str) -> KfpFacts:
    """Ask KFP's API; without an answer the id is all there is."""
    tags = {RUN_TAG: kfp_run_id}
    try:
        run = _ask(f"runs/{kfp_run_id}")
        tags |= _origin(run)
    except (urllib3.exceptions.HTTPError, ValueError, KeyError) as error:
        _log.warning("KFP's API at %s does not tell of run %s: %s", api_address(), kfp_run_id, error)
        return KfpFacts(f"kfp-{kfp_run_id[:8]}", None, tags, {})
    parameters = dict((run.get("runtime_config") or {}).get("parameters") or {})
    if recipe := str(parameters.get("name", "")):
        tags["recipe"] = recipe
    if url := os.environ.get(KFP_URL, "").rstrip("/"):
        tags["kfp.pipeline_run_url"] = f"{url}/#/runs/details/{kfp_run_id}"
    started_ms = int(datetime.fromisoformat(run["created_at"]).timestamp() * 1000)
    return KfpFacts(str(run["display_name"]), started_ms, tags, parameters)


def api_address() -> str:
    """Where a pod reaches KFP's API: the service of its namespace, or the one of KFP's own."""
    if given := os.environ.get(KFP_API, "").rstrip("/"):
        return given
    host, port = (os.environ.get(f"ML_PIPELINE_SERVICE_{name}", "") for name in ("HOST", "PORT"))
    return f"http://{host}:{port or 8888}" if host else "http://ml-pipeline.kubeflow:8888"


def _origin(run: dict[str, Any]) -> dict[str, str]:
    """Pipeline, version and schedule of a run, by id and by name."""
    tags: dict[str, str] = {}
    reference = run.get("pipeline_version_reference") or {}
    pipeline, version = reference.get("pipeline_id", ""), reference.get("pipeline_version_id", "")
    if pipeline and version:
        name = str(_ask(f"pipelines/{pipeline}")["display_name"])
        tags |= {"kfp.pipeline_id": pipeline, "kfp.pipeline_version_id": version, "pipeline": name.replace("-", "_")}
        tags["kfp.pipeline_version"] = str(_ask(f"pipelines/{pipeline}/versions/{version}")["display_name"])
    if schedule := run.get("recurring_run_id", ""):
        tags |= {"kfp.recurring_run_id": schedule, "schedule": str(_ask(f"recurringruns/{schedule}")["display_name"])}
    return tags


def _ask(path: str) -> dict[str, Any]:
    token = Path(os.environ.get("KF_PIPELINES_SA_TOKEN_PATH", _TOKEN))
    headers = {"Authorization": f"Bearer {token.read_text(encoding='utf-8').strip()}"} if token.is_file() else {}
    answer = urllib3.request(
        "GET",
        f"{api_address()}/apis/v2beta1/{path}",
        headers=headers,
        timeout=urllib3.Timeout(connect=3.0, read=15.0),
        retries=urllib3.Retry(2, backoff_factor=0.5, status_forcelist=_BUSY, raise_on_status=False),
    )
    if answer.status != 200:
        raise ValueError(f"HTTP {answer.status} {answer.data[:200]!r}")
    return dict(json.loads(answer.data))
