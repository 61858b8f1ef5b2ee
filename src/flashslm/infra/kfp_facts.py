"""What KFP's API says of a run, asked by one of its pods."""

import json
import logging
import os
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import urllib3
from pydantic import ValidationError

from flashslm.config import RunConfig
from flashslm.infra.storage import long_sections
from flashslm.infra.storage.errors import StoreError
from flashslm.infra.storage.object_store import ObjectStore

RUN_TAG = "kfp.pipeline_run_id"  # of an MLflow run; KFP's plug-in for MLflow sets the same
# Optional: where pods reach KFP's API, and where people see KFP.
KFP_API, KFP_URL = "FLASHSLM_KFP_API", "FLASHSLM_KFP_URL"
_TOKEN = "/var/run/secrets/kubeflow/pipelines/token"  # where Kubeflow's PodDefault projects it
_BUSY = [429, 500, 502, 503, 504]
_log = logging.getLogger(__name__)


class KfpFacts(NamedTuple):
    """What KFP knows of a run; where its API does not answer, only the id."""

    name: str
    started_ms: int | None
    tags: dict[str, str]
    parameters: dict[str, Any]

    @property
    def recipe(self) -> str:
        """The recipe's name; empty if it is not known."""
        return str(self.parameters.get("name", ""))


def recipe_of(parameters: dict[str, Any], store: ObjectStore) -> RunConfig | None:
    """The recipe that a KFP run's parameters hold, all but its platform; None where they hold none that can be read."""
    values = {name: parameters[name] for name in RunConfig.model_fields if name in parameters}
    if "seed" in values:
        values["seed"] = int(values["seed"])  # KFP's numbers are floats
    try:
        return RunConfig.model_validate_json(long_sections.whole(json.dumps(values), store))
    except (ValidationError, StoreError) as error:
        _log.warning("the recipe of the KFP run cannot be read: %s", error)
        return None


def facts_of(kfp_run_id: str) -> KfpFacts:
    """Ask KFP's API; without an answer the id is all there is."""
    tags = {RUN_TAG: kfp_run_id}
    try:
        run = _ask(f"runs/{kfp_run_id}")
        tags |= _origin(run)
    except (urllib3.exceptions.HTTPError, ValueError, KeyError) as error:
        _log.warning("KFP's API at %s gives no answer about run %s: %s", api_address(), kfp_run_id, error)
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
