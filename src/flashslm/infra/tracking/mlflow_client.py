"""MLflow's own client, with short waits and two kinds of error.

Everything that the client reads from the environment works: plug-ins for authentication, certificates, workspaces, any
artifact store. A token, or a user with a password, may also be given as FLASHSLM_TRACKING_*, which come first: a pod's
own, since KFP's plug-in for MLflow may set the others. `import mlflow` costs 2 s and comes with the first request.
"""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from flashslm.infra.process.interrupts import stop_requested
from flashslm.infra.settings import Settings
from flashslm.infra.storage.s3 import is_outage, translated

# Begins the tags that only this package reads: MLflow's pages hide what begins with `mlflow.`. Runs of earlier versions
# have the same tags without that, and are found and read as well.
HIDDEN = "mlflow.flashslm."
_SHOWN = HIDDEN.removeprefix("mlflow.")
MLFLOW_URL = "FLASHSLM_MLFLOW_URL"  # optional: where people see MLflow
_RETRIES, _TIMEOUT = "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"
# MLflow's own defaults are 7 retries and 120 s, which would stop a step for a quarter of an hour. The one retry is made
# here, since a process that is asked to end makes none.
_WAITS = {_RETRIES: "0", "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1", _TIMEOUT: "15"}
_WAITS |= {"AWS_MAX_ATTEMPTS": "1"}  # of an upload straight to S3
_TIMEOUT_WHILE_STOPPING = "3"
_PAUSE_S = 0.2  # before the retry
_QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"}
_QUIET |= {"MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
_CREDENTIALS = ("TOKEN", "USERNAME", "PASSWORD")
_NOT_TWICE = {"create_run", "create_model_version", "create_logged_model"}
_UNAVAILABLE = {"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "RESOURCE_EXHAUSTED"}
_NO_SERVER = "not in a valid JSON format"
_log = logging.getLogger(__name__)


class MlflowError(RuntimeError):
    """MLflow refused a request; `code` is its error code."""

    def __init__(self, message: str, code: str = ""):
        super().__init__(message)
        self.code = code


class MlflowUnavailable(MlflowError):
    """MLflow did not answer, or failed, after retries."""


class TrackingClient:
    """MLflow's client of the settings' server: its methods are this object's, and raise MlflowError.

    Safe to share between threads. An upload that S3 refuses raises StoreError or StoreUnavailable.
    """

    def __init__(self, settings: Settings):
        if not settings.tracking_uri.startswith(("http://", "https://")):
            raise ValueError(
                f"MLFLOW_TRACKING_URI is '{settings.tracking_uri}': give the http(s) address of an MLflow server; "
                "`flashslm stack up` starts one"
            )
        self.settings = settings

    def __getattr__(self, method: str) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            repeatable = method not in _NOT_TWICE
            try:
                return self._send(method, repeatable, arguments, named)
            except MlflowUnavailable:
                if not repeatable or os.environ.get(_RETRIES) != "0" or stop_requested(within_s=_PAUSE_S):
                    raise
                return self._send(method, repeatable, arguments, named)

        return call

    def _send(self, method: str, repeatable: bool, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        with _errors_of(self.settings), _limits(repeatable):
            uri = self.settings.present().tracking_uri
            return getattr(_mlflow_client(uri), method)(*arguments, **named)

    @cached_property
    def experiment_id(self) -> str:
        """The id of the settings' experiment, which is made unless it is there, and restored where it was deleted."""
        name = self.settings.experiment
        found = self.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self.create_experiment(name))
            except MlflowError as error:
                if error.code != "RESOURCE_ALREADY_EXISTS":  # another process was first
                    raise
                found = self.get_experiment_by_name(name)
        if found.lifecycle_stage == "deleted":  # it would take no runs
            _log.warning("experiment '%s' had been deleted in MLflow: it is restored with its runs", name)
            self.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def experiment_ids(self) -> list[str]:
        """Those of all experiments that were not deleted."""
        return [str(experiment.experiment_id) for experiment in self.all_pages("search_experiments")]

    def find_runs(self, condition: str, experiment_ids: list[str] | None = None) -> list[Any]:
        """All runs that meet a condition in MLflow's search syntax, newest first: of the experiment, or of others."""
        ids = [self.experiment_id] if experiment_ids is None else experiment_ids
        conditions = {condition: None, condition.replace(f"tags.{HIDDEN}", f"tags.{_SHOWN}"): None}
        pages = (self.all_pages("search_runs", experiment_ids=ids, filter_string=each) for each in conditions)
        found = {run.info.run_id: run for page in pages for run in page}
        return sorted(found.values(), key=lambda run: run.info.start_time or 0, reverse=True)

    def run_url(self, run_id: str) -> str:
        """The run's page where people see MLflow, which would open for generative AI by itself."""
        address = (os.environ.get(MLFLOW_URL) or self.settings.present().tracking_uri).rstrip("/")
        experiment_id = self.get_run(run_id).info.experiment_id
        return f"{address}/#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"

    def all_pages(self, method: str, **query: Any) -> list[Any]:
        """What a search finds, page by page."""
        found, token = [], None
        while True:
            page = getattr(self, method)(**query, page_token=token)
            found += page
            if not (token := page.token):
                return found


def hidden_tag(run: Any, tag: str) -> str:
    """The value of a run's hidden tag; empty for a run without it."""
    return str(run.data.tags.get(tag) or run.data.tags.get(tag.replace(HIDDEN, _SHOWN), ""))


def _mlflow_client(uri: str) -> Any:
    for name, value in (_WAITS | _QUIET).items():
        os.environ.setdefault(name, value)
    if any(os.environ.get(f"FLASHSLM_TRACKING_{name}") for name in _CREDENTIALS):
        for name in _CREDENTIALS:
            os.environ[f"MLFLOW_TRACKING_{name}"] = os.environ.get(f"FLASHSLM_TRACKING_{name}", "")
    from mlflow.tracking import MlflowClient

    return MlflowClient(uri, uri)


@contextmanager
def _limits(repeatable: bool) -> Iterator[None]:
    """A request that must not happen twice is sent once, and one of a process that is asked to end waits for seconds;
    so do other threads' meanwhile, which does no harm.
    """
    wanted = {_RETRIES: "0", _TIMEOUT: _TIMEOUT_WHILE_STOPPING} if stop_requested() else {}
    wanted |= {} if repeatable else {_RETRIES: "0"}
    usual = {name: os.environ.get(name, _WAITS[name]) for name in wanted}
    before = {name: value for name, value in usual.items() if float(value) > float(wanted[name])}
    os.environ.update({name: wanted[name] for name in before})
    try:
        yield
    finally:
        os.environ.update(before)


@contextmanager
def _errors_of(settings: Settings) -> Iterator[None]:
    try:
        with translated("the artifact store", "an artifact"):
            yield
    except Exception as error:
        library = type(error).__module__.partition(".")[0]
        if library not in ("mlflow", "requests"):  # requests': of an upload
            raise
        raise _translated(settings, error) from error


def _translated(settings: Settings, error: Exception) -> MlflowError:
    code, response = str(getattr(error, "error_code", "")), getattr(error, "response", None)
    if _NO_SERVER in str(error):
        return MlflowError(f"{settings.tracking_uri} gave no JSON: is MLFLOW_TRACKING_URI an MLflow server?")
    if code in _UNAVAILABLE or (not code and (response is None or is_outage(response.status_code))):
        return MlflowUnavailable(
            f"MLflow at {settings.tracking_uri} does not answer ({str(error)[:300]}). Look with `flashslm stack status`"
        )
    denied = code in ("UNAUTHENTICATED", "PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED")
    hint = "; check MLFLOW_TRACKING_TOKEN or MLFLOW_TRACKING_USERNAME and _PASSWORD" if denied else ""
    return MlflowError(f"MLflow refused: {code} {str(error)[:1000]}{hint}", code)
