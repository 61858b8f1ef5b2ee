"""`open_run()`: every step is one MLflow run, with its true end whatever ends it.

A step attaches to the run that a cluster injects (MLFLOW_RUN_ID) or makes one nested under the pipeline's parent run.
MLflow being away never stops a step: what it could not send is spooled (see `spool`) and sent later.
"""

import json
import logging
import os
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from flashslm.config.secret import without_secrets
from flashslm.infra.process import owners
from flashslm.infra.process.interrupts import Terminated, deferred_signals, terminable
from flashslm.infra.settings import Settings
from flashslm.infra.storage.s3 import StoreError, StoreUnavailable
from flashslm.infra.tracking import spool
from flashslm.infra.tracking.mlflow_api import MlflowApi, MlflowError, MlflowUnavailable, metric_point
from flashslm.infra.tracking.spool import Request, RunRef, backfill, spooled

__all__ = [
    "Status",
    "TrackedRun",
    "attach_file",
    "backfill",
    "finish_run",
    "log_dataset_to_run",
    "log_to_run",
    "open_run",
    "spooled",
    "start_parent_run",
    "sweep",
]

Status = Literal["FINISHED", "FAILED", "KILLED"]
OWNER_TAG = "flashslm.owner"
PARAM_PREFIX = "cfg."  # the KFP launcher logs a component's inputs itself, and MLflow refuses a changed value
_FLUSH_EVERY_S = 1.0
_FLUSH_POINTS = 500
_RETRY_AFTER_S = 5.0  # between two tries of an absent MLflow
_MAX_POINTS, _MAX_PARAMS_OR_TAGS = 1000, 100  # of one log-batch request
_MAX_PARAM_CHARACTERS, _MAX_TAG_CHARACTERS, _MAX_DIGEST_CHARACTERS = 6000, 8000, 36
_log = logging.getLogger(__name__)


class TrackedRun:
    """One MLflow run, open inside its `with`. Its methods never raise because of MLflow; threads may share it."""

    def __init__(self, api: MlflowApi, run: RunRef, spooled: bool):
        self._api = api
        self._run = run
        self._spooled = spooled  # something of this run waits on disk: everything after it queues behind
        self._retry_at_s = time.monotonic() + _RETRY_AFTER_S
        self._send_lock = threading.RLock()
        self._points: list[dict[str, Any]] = []
        self._points_lock = threading.Lock()
        self._wake = threading.Event()
        self._ended = threading.Event()
        self._flusher = threading.Thread(target=self._flush_until_ended, name="mlflow-flush", daemon=True)

    @property
    def run_id(self) -> str:
        """The run's id; empty while MLflow has not been reachable since the start."""
        return self._run.run_id

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Note metrics of a step; they are sent about once a second, and in full when the run ends."""
        points = [metric_point(key, value, step) for key, value in metrics.items()]
        with self._points_lock:
            self._points += points
            if len(self._points) >= _FLUSH_POINTS:
                self._wake.set()

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log parameters as `cfg.<name>`; nested mappings become dotted names."""
        for batch in _param_batches(params):
            self._post("runs/log-batch", batch)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set or replace tags."""
        listed = _tags(tags)
        for start in range(0, len(listed), _MAX_PARAMS_OR_TAGS):
            self._post("runs/log-batch", {"tags": listed[start : start + _MAX_PARAMS_OR_TAGS]})

    def log_file(self, path: str | Path, artifact_path: str = "") -> None:
        """Upload a small file into the directory `artifact_path` of the run's artifacts."""
        file = Path(path)
        target = f"{artifact_path.strip('/')}/{file.name}".lstrip("/")
        self._send(Request(file=file, path=target))

    def log_figure(self, figure: Any, name: str) -> None:
        """Upload a matplotlib figure as `name`, e.g. `figures/loss.png`."""
        with tempfile.TemporaryDirectory() as directory:
            file = Path(directory) / Path(name).name
            figure.savefig(file, bbox_inches="tight")
            self.log_file(file, str(Path(name).parent).lstrip("."))

    def log_dataset(self, name: str, uri: str, digest: str) -> None:
        """Record the data a run used; MLflow keeps the first 36 characters of the digest."""
        self._send(_dataset_request(name, uri, digest))

    def nested(
        self, name: str, tags: Mapping[str, str] | None = None, params: Mapping[str, Any] | None = None
    ) -> "TrackedRun":
        """A child run, for a trial: `with run.nested("trial-3") as trial`."""
        return _new_run(self._api, name, dict(tags or {}), dict(params or {}), self._run)

    def flush(self) -> None:
        """Send the noted metrics now."""
        with self._points_lock:
            points, self._points = self._points, []
        for start in range(0, len(points), _MAX_POINTS):
            self._post("runs/log-batch", {"metrics": points[start : start + _MAX_POINTS]})

    def __enter__(self) -> "TrackedRun":
        self._flusher.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: TracebackType | None) -> None:
        with deferred_signals():
            self._end(error)

    def _end(self, error: BaseException | None) -> None:
        self._ended.set()
        self._wake.set()
        self._flusher.join()
        self._retry_at_s = 0.0
        self.flush()
        status = _status_of(error)
        if status != "FINISHED":
            self.set_tags({"flashslm.error": f"{type(error).__name__}: {error}"})
        self._send(_end_request(status))

    def _flush_until_ended(self) -> None:
        while not self._ended.is_set():
            self._wake.wait(_FLUSH_EVERY_S)
            self._wake.clear()
            self.flush()

    def _post(self, endpoint: str, body: dict[str, Any]) -> None:
        self._send(Request(endpoint=endpoint, body=body))

    def _send(self, request: Request) -> None:
        """Send in order: directly, or behind what already waits on disk."""
        with self._send_lock:
            if self._spooled and not self._recover():
                spool.append(self._run, request)
                return
            try:
                request.send(self._api, self._run.run_id)
            except (MlflowUnavailable, StoreUnavailable) as error:
                _log.warning("%s; metrics go to the spool and are sent when it is back", error)
                self._spooled = True
                self._retry_at_s = time.monotonic() + _RETRY_AFTER_S
                spool.append(self._run, request)
            except (MlflowError, StoreError) as error:
                _log.warning("not logged: %s", error)

    def _recover(self) -> bool:
        """Try, not too often, to send what waits on disk; True when nothing waits any more."""
        if time.monotonic() < self._retry_at_s:
            return False
        try:
            run_id = spool.send_spooled(self._api, self._run)
        except MlflowError:  # away still, or back and refusing (a token that ran out): it all stays on disk
            self._retry_at_s = time.monotonic() + _RETRY_AFTER_S
            return False
        self._run = self._run.model_copy(update={"run_id": run_id})
        self._spooled = False
        return True


@contextmanager
def open_run(
    settings: Settings, name: str, *, tags: Mapping[str, str] | None = None, params: Mapping[str, Any] | None = None
) -> Iterator[TrackedRun]:
    """Open the run of a step; it ends FINISHED, FAILED (an exception, a non-zero exit) or KILLED (SIGTERM, SIGINT).

    Raises MlflowError at the start if MLflow answers but refuses (wrong credentials, no such injected run).
    """
    api = MlflowApi(settings)
    injected = os.environ.get("MLFLOW_RUN_ID", "")
    with terminable():
        if injected:
            run = _attach(api, injected, dict(tags or {}), dict(params or {}))
        else:
            parent = settings.parent_run_id and RunRef.of(settings, settings.parent_run_id)
            run = _new_run(api, name, dict(tags or {}), dict(params or {}), parent or None)
        with run:
            yield run


def start_parent_run(settings: Settings, name: str, tags: Mapping[str, str] | None = None) -> str:
    """Create the run of a whole pipeline, for the launcher; end it with `finish_run`. Raises MlflowUnavailable."""
    run = RunRef(key="", experiment=settings.experiment, create=_creation(name, dict(tags or {})))
    return spool.create_run(MlflowApi(settings), run)


def finish_run(settings: Settings, run_id: str, status: Status) -> None:
    """End a run; if MLflow is away the end is spooled."""
    _send_or_spool(settings, run_id, _end_request(status))


def log_to_run(
    settings: Settings,
    run_id: str,
    *,
    metrics: Mapping[str, float] | None = None,
    tags: Mapping[str, str] | None = None,
    params: Mapping[str, Any] | None = None,
) -> None:
    """Add to a pipeline's own run: metrics at step 0, tags, and parameters as `cfg.<name>`."""
    points = [metric_point(key, value, 0) for key, value in (metrics or {}).items()]
    body = {"metrics": points, "tags": _tags(tags or {})}
    _send_or_spool(settings, run_id, Request(endpoint="runs/log-batch", body=body))
    for batch in _param_batches(params or {}):
        _send_or_spool(settings, run_id, Request(endpoint="runs/log-batch", body=batch))


def log_dataset_to_run(settings: Settings, run_id: str, name: str, uri: str, digest: str) -> None:
    """Record the data a pipeline used in its own run."""
    _send_or_spool(settings, run_id, _dataset_request(name, uri, digest))


def attach_file(settings: Settings, run_id: str, file: Path) -> None:
    """Add a small file to a run's artifacts."""
    _send_or_spool(settings, run_id, Request(file=file, path=file.name))


def sweep(settings: Settings) -> list[str]:
    """End as KILLED every RUNNING run whose owner was a process of this machine that is gone; returns their ids."""
    api = MlflowApi(settings)
    dead = []
    for run in api.search_runs(f"attributes.status = 'RUNNING' and tags.{OWNER_TAG} LIKE '{owners.machine()} %'"):
        tags = {tag["key"]: tag["value"] for tag in run["data"]["tags"]}
        if owners.is_gone(tags[OWNER_TAG]):
            dead.append(str(run["info"]["run_id"]))
    for run_id in dead:
        finish_run(settings, run_id, "KILLED")
    return dead


def end_lost(settings: Settings, name: str, owners_lost: Sequence[str]) -> None:
    """End as KILLED the runs of this name that lost processes had finished: they died before their result was kept."""
    api = MlflowApi(settings)
    for owner in owners_lost:
        condition = f"attributes.run_name = '{name}' and tags.{OWNER_TAG} = '{owner}'"
        with suppress(MlflowError):
            for run in api.search_runs(f"{condition} and attributes.status = 'FINISHED'"):
                finish_run(settings, str(run["info"]["run_id"]), "KILLED")


def _send_or_spool(settings: Settings, run_id: str, request: Request) -> None:
    try:
        request.send(MlflowApi(settings), run_id)
    except (MlflowUnavailable, StoreUnavailable) as error:
        _log.warning("%s; it is spooled for run %s", error, run_id)
        spool.append(RunRef.of(settings, run_id), request)


def _end_request(status: Status) -> Request:
    return Request(endpoint="runs/update", body={"status": status, "end_time": int(time.time() * 1000)})


def _new_run(
    api: MlflowApi, name: str, tags: dict[str, str], params: dict[str, Any], parent: RunRef | None
) -> TrackedRun:
    experiment, create = api.settings.experiment, _creation(name, tags)
    run = RunRef(key=f"new-{uuid.uuid4().hex}", experiment=experiment, create=create, parent=parent)
    try:
        if parent and not parent.run_id:
            raise MlflowUnavailable(f"MLflow has not seen the parent of run '{name}' yet")
        run_id = spool.create_run(api, run)
        opened = TrackedRun(api, RunRef.of(api.settings, run_id), spooled=False)
    except MlflowUnavailable as error:
        _log.warning("%s; the run '%s' is spooled and created when it is back", error, name)
        opened = TrackedRun(api, run, spooled=True)
    opened.log_params(params)
    return opened


def _attach(api: MlflowApi, run_id: str, tags: dict[str, str], params: dict[str, Any]) -> TrackedRun:
    opened = TrackedRun(api, RunRef.of(api.settings, run_id), spooled=False)
    with suppress(MlflowUnavailable):
        api.get("runs/get", run_id=run_id)  # a wrong id must be an error now, not a warning for every metric
    opened._post("runs/update", {"status": "RUNNING"})  # a retried step reopens its run
    opened.set_tags(tags | {OWNER_TAG: owners.owner()})
    opened.log_params(params)
    return opened


def _creation(name: str, tags: dict[str, str]) -> dict[str, Any]:
    listed = _tags(tags | {OWNER_TAG: owners.owner()})
    return {"run_name": name, "start_time": int(time.time() * 1000), "tags": listed}


def _status_of(error: BaseException | None) -> Status:
    if error is None or (type(error) is SystemExit and error.code in (None, 0)):
        return "FINISHED"
    return "KILLED" if isinstance(error, Terminated | KeyboardInterrupt) else "FAILED"


def _tags(tags: Mapping[str, Any]) -> list[dict[str, str]]:
    return [{"key": key, "value": without_secrets(str(value))[:_MAX_TAG_CHARACTERS]} for key, value in tags.items()]


def _param_batches(params: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    flat = [{"key": PARAM_PREFIX + k, "value": without_secrets(v)[:_MAX_PARAM_CHARACTERS]} for k, v in _flatten(params)]
    for start in range(0, len(flat), _MAX_PARAMS_OR_TAGS):
        yield {"params": flat[start : start + _MAX_PARAMS_OR_TAGS]}


def _dataset_request(name: str, uri: str, digest: str) -> Request:
    dataset = {
        "name": name,
        "digest": digest[:_MAX_DIGEST_CHARACTERS],
        "source_type": "s3",
        "source": json.dumps({"uri": uri}),
    }
    return Request(endpoint="runs/log-inputs", body={"datasets": [{"dataset": dataset, "tags": []}]})


def _flatten(params: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in params.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)
