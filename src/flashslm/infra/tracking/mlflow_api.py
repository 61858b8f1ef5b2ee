"""A small client of MLflow's REST API 2.0.

`import mlflow` costs 2 s and 180 MB, which every step's process would pay; these calls cost 0.1 s. Credentials are read
from the variables MLflow itself reads: MLFLOW_TRACKING_TOKEN, _USERNAME and _PASSWORD, _AUTH=kubernetes,
_SERVER_CERT_PATH, _INSECURE_TLS and MLFLOW_WORKSPACE; the first three also as FLASHSLM_TRACKING_*, which come first: a
pod's own, since KFP's plug-in for MLflow may set the others.
"""

import json
import logging
import math
import os
import time
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import urllib3

from flashslm.infra.settings import Settings
from flashslm.infra.storage.s3 import s3_client, translated

_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_TIMEOUT = urllib3.Timeout(connect=3.0, read=30.0)
_ARTIFACT_PATIENCE_S = 5.0  # nothing waits for what is only logged: it is spooled
_RETRIES = urllib3.Retry(
    total=3, backoff_factor=0.3, status_forcelist=(429, 500, 502, 503, 504), allowed_methods=None, raise_on_status=False
)


_log = logging.getLogger(__name__)


class MlflowError(RuntimeError):
    """MLflow refused a request; `code` is its error code."""

    def __init__(self, message: str, code: str = ""):
        super().__init__(message)
        self.code = code


class MlflowUnavailable(MlflowError):
    """MLflow did not answer, or failed, after retries."""


class MlflowApi:
    """Requests to one server. Safe to share between threads."""

    def __init__(self, settings: Settings):
        if not settings.tracking_uri.startswith(("http://", "https://")):
            raise ValueError(
                f"MLFLOW_TRACKING_URI is '{settings.tracking_uri}': give the http(s) address of an MLflow server; "
                "`flashslm stack up` starts one"
            )
        self.settings = settings
        insecure = os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() == "true"
        self._pool = urllib3.PoolManager(
            timeout=_TIMEOUT,
            cert_reqs="CERT_NONE" if insecure else "CERT_REQUIRED",
            ca_certs=os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH"),
        )
        self._artifact_roots: dict[str, str] = {}

    def get(self, endpoint: str, **query: str) -> dict[str, Any]:
        """GET an endpoint such as `runs/get`."""
        return self._call("GET", endpoint, fields=query)

    def post(
        self, endpoint: str, body: dict[str, Any], method: str = "POST", *, repeatable: bool = True
    ) -> dict[str, Any]:
        """POST (or another method with a body); a request that must not happen twice is sent once."""
        data = json.dumps(body, allow_nan=False).encode()
        headers = {"Content-Type": "application/json"}
        retries = _RETRIES if repeatable else _RETRIES.new(read=0, status=0, other=0)
        return self._call(method, endpoint, body=data, headers=headers, retries=retries)

    @cached_property
    def experiment_id(self) -> str:
        """The id of the settings' experiment, which is made unless it is there, and restored where it was deleted."""
        name = self.settings.experiment
        try:
            return self._known_experiment(name)
        except MlflowError as error:
            if error.code != "RESOURCE_DOES_NOT_EXIST":
                raise
        try:
            return str(self.post("experiments/create", {"name": name})["experiment_id"])
        except MlflowError as error:
            if error.code != "RESOURCE_ALREADY_EXISTS":  # another process was first
                raise
        return self._known_experiment(name)

    def _known_experiment(self, name: str) -> str:
        """The id of an experiment; one that was deleted in MLflow takes no runs, so it is restored."""
        found = self.get("experiments/get-by-name", experiment_name=name)["experiment"]
        if found.get("lifecycle_stage") == "deleted":
            _log.warning("experiment '%s' had been deleted in MLflow: it is restored with its runs", name)
            self.post("experiments/restore", {"experiment_id": found["experiment_id"]})
        return str(found["experiment_id"])

    def search_runs(self, condition: str, experiment_ids: list[str] | None = None) -> list[dict[str, Any]]:
        """All runs that meet a condition in MLflow's search syntax, newest first: of the experiment, or of others."""
        ids = [self.experiment_id] if experiment_ids is None else experiment_ids
        return self._pages("runs/search", "runs", {"experiment_ids": ids, "filter": condition})

    def search_experiments(self) -> list[dict[str, Any]]:
        """All experiments that were not deleted."""
        return self._pages("experiments/search", "experiments", {})

    def _pages(self, endpoint: str, field: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        """What a search finds, page by page."""
        body, found = body | {"max_results": 1000}, []
        while True:
            page = self.post(endpoint, body)
            found += page.get(field, [])
            if not page.get("next_page_token"):
                return found
            body["page_token"] = page["next_page_token"]

    def put_artifact(self, run_id: str, file: Path, path: str) -> None:
        """Upload a file to `path` among a run's artifacts, through the server or straight to its S3."""
        if run_id not in self._artifact_roots:
            self._artifact_roots[run_id] = self.get("runs/get", run_id=run_id)["run"]["info"]["artifact_uri"]
        root = urlsplit(self._artifact_roots[run_id])
        key = f"{root.path.strip('/')}/{path}"
        if root.scheme == "s3":
            with translated(f"S3 at {self.settings.endpoint_url}, bucket '{root.netloc}'", key):
                s3_client(self.settings, _ARTIFACT_PATIENCE_S).upload_file(str(file), root.netloc, key)
        elif root.scheme == "mlflow-artifacts":
            with file.open("rb") as body:
                headers = {"Content-Length": str(file.stat().st_size), "Content-Type": "application/octet-stream"}
                self._request("PUT", f"api/2.0/mlflow-artifacts/artifacts/{quote(key)}", body=body, headers=headers)
        else:
            raise MlflowError(
                f"artifacts of run {run_id} are at {root.geturl()}: only s3:// and a proxying server work"
            )

    def read_artifact(self, run_id: str, path: str) -> bytes:
        """One of a run's artifacts, through the server."""
        return self._request("GET", "get-artifact", fields={"run_id": run_id, "path": path})

    def _call(self, method: str, endpoint: str, **request: Any) -> dict[str, Any]:
        reply = self._request(method, f"api/2.0/mlflow/{endpoint}", **request)
        try:
            answer = json.loads(reply or b"{}")
        except ValueError as error:
            uri = self.settings.tracking_uri
            raise MlflowError(f"{uri} gave no JSON for {endpoint}: is MLFLOW_TRACKING_URI an MLflow server?") from error
        return dict(answer)

    def _request(self, method: str, path: str, **request: Any) -> bytes:
        url = f"{self.settings.present().tracking_uri.rstrip('/')}/{path}"
        headers = _authorization() | request.pop("headers", {})
        retries = request.pop("retries", _RETRIES)
        try:
            reply = self._pool.request(method, url, headers=headers, retries=retries, **request)
        except urllib3.exceptions.HTTPError as error:
            raise self._unavailable(f"{type(error).__name__}: {error}") from error
        if reply.status == 429 or reply.status >= 500:
            raise self._unavailable(f"HTTP {reply.status} {reply.data[:300]!r}")
        if reply.status >= 400:
            raise _refused(method, url, reply.status, reply.data.decode(errors="replace"))
        return reply.data

    def _unavailable(self, reason: str) -> MlflowUnavailable:
        return MlflowUnavailable(
            f"MLflow at {self.settings.tracking_uri} does not answer ({reason}). Look with `flashslm stack status`"
        )


def _refused(method: str, url: str, status: int, text: str) -> MlflowError:
    try:
        reply = json.loads(text)
        code, message = str(reply.get("error_code", "")), str(reply.get("message", ""))
    except (ValueError, AttributeError):
        code, message = "", text[:300]
    hint = "; check MLFLOW_TRACKING_TOKEN or MLFLOW_TRACKING_USERNAME and _PASSWORD" if status in (401, 403) else ""
    return MlflowError(f"MLflow refused {method} {url}: HTTP {status} {code} {message}{hint}", code)


def _authorization() -> dict[str, str]:
    """Headers for every request; read each time, since a service account's token is renewed on disk."""
    env = os.environ
    headers = {"X-MLFLOW-WORKSPACE": env["MLFLOW_WORKSPACE"]} if env.get("MLFLOW_WORKSPACE") else {}
    if env.get("MLFLOW_TRACKING_AUTH", "").startswith("kubernetes"):
        headers["Authorization"] = f"Bearer {(_SERVICE_ACCOUNT / 'token').read_text(encoding='utf-8').strip()}"
        if env["MLFLOW_TRACKING_AUTH"] == "kubernetes-namespaced":
            headers["X-MLFLOW-WORKSPACE"] = (_SERVICE_ACCOUNT / "namespace").read_text(encoding="utf-8").strip()
    elif token := _credential("TOKEN"):
        headers["Authorization"] = f"Bearer {token}"
    elif user := _credential("USERNAME"):
        headers["Authorization"] = urllib3.make_headers(basic_auth=f"{user}:{_credential('PASSWORD')}")["authorization"]
    return headers


def _credential(name: str) -> str:
    own = os.environ.get(f"FLASHSLM_TRACKING_{name}", "")
    return own or os.environ.get(f"MLFLOW_TRACKING_{name}", "")


def metric_point(key: str, value: float, step: int) -> dict[str, Any]:
    """One metric value of now as MLflow's JSON has it: a NaN or infinity is a string there."""
    number = float(value)
    special = "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"
    shown = number if math.isfinite(number) else special
    return {"key": key, "value": shown, "timestamp": int(time.time() * 1000), "step": step}
