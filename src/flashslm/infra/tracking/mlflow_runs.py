"""`open_run()`: every step is one MLflow run, with its true end whatever ends it.

A step attaches to the run that a cluster injects (MLFLOW_RUN_ID) or makes one nested under the pipeline's parent run.
MLflow being away never stops a step: what it could not send is spooled (see `spool`) and sent later.
"""

import getpass
import json
import logging
import os
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from flashslm.config import RunConfig
from flashslm.config import file as config_file
from flashslm.config.reference import differences
from flashslm.config.secret import without_secrets
from flashslm.infra.checkout import commit
from flashslm.infra.process import owners
from flashslm.infra.process.interrupts import Terminated, deferred_signals, terminable
from flashslm.infra.settings import Settings
from flashslm.infra.storage.errors import StoreError, StoreUnavailable
from flashslm.infra.tracking import spool
from flashslm.infra.tracking.mlflow_client import HIDDEN, MlflowError, MlflowUnavailable, TrackingClient, hidden_tag
from flashslm.infra.tracking.spool import Entry, MetricPoint, RunRef
from flashslm.infra.tracking.system_metrics import SystemMetrics

Status = Literal["FINISHED", "FAILED", "KILLED"]
OWNER_TAG = f"{HIDDEN}owner"
PARAM_PREFIX = "cfg."  # the KFP launcher logs a component's inputs itself, and MLflow refuses a changed value
_SEND_EVERY_S = 1.0
_RETRY_AFTER_S = 5.0  # between two tries of an absent MLflow
_log = logging.getLogger(__name__)


class TrackedRun:
    """One MLflow run. Its methods never raise because of MLflow; threads may share it.

    Inside its `with` they only note: a thread sends about once a second, so that a step waits for MLflow at its start
    and its end alone. The end of the block ends the run. Outside they send at once.
    """

    def __init__(self, client: TrackingClient, run: RunRef, spooled: bool = False):
        self._client, self._run = client, run
        self._spooled = spooled  # something of this run waits on disk: everything after it queues behind
        self._retry_at_s = time.monotonic() + _RETRY_AFTER_S
        self._noted: list[Entry] = []
        self._curves: set[str] = set()  # the metrics that were logged
        self._note_lock, self._send_lock = threading.Lock(), threading.Lock()
        self._files = tempfile.TemporaryDirectory(prefix="flashslm-artifacts-", ignore_cleanup_errors=True)
        self._ended = threading.Event()
        self._sender = threading.Thread(target=self._send_until_ended, name="mlflow-sender", daemon=True)

    @property
    def run_id(self) -> str:
        """The run's id; empty while MLflow has not been reachable since the start."""
        return self._run.run_id

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log metrics of a step."""
        now_ms = int(time.time() * 1000)
        self._curves |= metrics.keys()
        self._note(Entry(metrics=[MetricPoint(key, float(value), now_ms, step) for key, value in metrics.items()]))

    def log_row(self, step: int, metrics: Mapping[str, float]) -> None:
        """`log_metrics` in the order in which training reports its rows."""
        self.log_metrics(metrics, step)

    def log_result(self, result: Mapping[str, float]) -> None:
        """Log what came out in the end; a metric that has a curve keeps it as it is."""
        self.log_metrics({key: value for key, value in result.items() if key not in self._curves}, step=0)

    def log_recipe(self, config: RunConfig) -> None:
        """Log what differs from the defaults as parameters, and the whole recipe as config.yaml."""
        self.log_params(differences(config))
        with tempfile.TemporaryDirectory() as directory:
            file = Path(directory) / "config.yaml"
            file.write_text(config_file.dump(config), encoding="utf-8")
            self.log_file(file)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log parameters as `cfg.<name>`; nested mappings become dotted names."""
        self._note(Entry(params={PARAM_PREFIX + key: without_secrets(value) for key, value in _flatten(params)}))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set or replace tags."""
        self._note(Entry(tags=_tags(tags)))

    def log_file(self, path: str | Path, artifact_path: str = "") -> None:
        """Upload a small file, as it is now, into the directory `artifact_path` of the run's artifacts."""
        name = f"{artifact_path.strip('/')}/{Path(path).name}".lstrip("/")
        kept = Path(self._files.name) / uuid.uuid4().hex / Path(path).name
        kept.parent.mkdir()
        shutil.copyfile(path, kept)
        self._note(Entry(file=kept, path=name))

    def log_figure(self, figure: Any, name: str) -> None:
        """Upload a matplotlib figure as `name`, e.g. `figures/loss.png`."""
        with tempfile.TemporaryDirectory() as directory:
            file = Path(directory) / Path(name).name
            figure.savefig(file, bbox_inches="tight")
            self.log_file(file, str(Path(name).parent).lstrip("."))

    def log_dataset(self, name: str, uri: str, digest: str) -> None:
        """Record the data a run used; MLflow keeps the first 36 characters of the digest."""
        self._note(Entry(dataset=(name, uri, digest)))

    def nested(
        self, name: str, tags: Mapping[str, str] | None = None, params: Mapping[str, Any] | None = None
    ) -> "TrackedRun":
        """A child run, for a trial: `with run.nested("trial-3") as trial`."""
        return _new_run(self._client, name, tags or {}, params or {}, self._run)

    def flush(self) -> None:
        """Send what is noted now, metrics in one request."""
        with self._send_lock:
            with self._note_lock:
                noted, self._noted = self._noted, []
            points = [point for entry in noted for point in entry.metrics]
            for entry in [Entry(metrics=points), *(entry for entry in noted if not entry.metrics)]:
                if entry != Entry():
                    self._send(entry)

    def end(self, status: Status) -> None:
        """Send what is noted, and end the run."""
        self._retry_at_s = 0.0
        self.flush()
        self._note(Entry(status=status, end_time_ms=int(time.time() * 1000)))
        self.flush()

    def __enter__(self) -> "TrackedRun":
        self._sender.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: TracebackType | None) -> None:
        with deferred_signals():
            if (status := _status_of(error)) != "FINISHED":
                self.set_tags({"flashslm.error": f"{type(error).__name__}: {error}"})
            self._ended.set()
            self._sender.join()
            self.end(status)
            self._files.cleanup()

    def _send_until_ended(self) -> None:
        system = SystemMetrics()
        while not self._ended.wait(_SEND_EVERY_S):
            if values := system.sample():
                self.log_metrics(values, system.samples)
            self.flush()

    def _note(self, entry: Entry) -> None:
        with self._note_lock:
            self._noted.append(entry)
        if not self._sender.is_alive():
            self.flush()

    def _send(self, entry: Entry) -> None:
        """Send in order: directly, or behind what already waits on disk."""
        if self._spooled and not self._recover():
            spool.append(self._run, entry)
            return
        try:
            entry.send(self._client, self._run.run_id)
        except (MlflowUnavailable, StoreUnavailable) as error:
            _log.warning("%s; metrics go to the spool and are sent when it is back", error)
            self._spooled = True
            self._retry_at_s = time.monotonic() + _RETRY_AFTER_S
            spool.append(self._run, entry)
        except (MlflowError, StoreError) as error:
            _log.warning("not logged: %s", error)

    def _recover(self) -> bool:
        """Try, not too often, to send what waits on disk; True when nothing waits any more."""
        if time.monotonic() < self._retry_at_s:
            return False
        self._retry_at_s = time.monotonic() + _RETRY_AFTER_S
        with suppress(MlflowError):  # away still, or back and refusing (a token that ran out): it all stays on disk
            run_id = spool.send_spooled(self._client, self._run)
            self._run = self._run.model_copy(update={"run_id": run_id})
            self._spooled = False
        return not self._spooled


@contextmanager
def open_run(
    settings: Settings, name: str, *, tags: Mapping[str, str] | None = None, params: Mapping[str, Any] | None = None
) -> Iterator[TrackedRun]:
    """Open the run of a step; it ends FINISHED, FAILED (an exception, a non-zero exit) or KILLED (SIGTERM, SIGINT).

    Raises MlflowError at the start if MLflow answers but refuses (wrong credentials, no such injected run).
    """
    client, injected = TrackingClient(settings), os.environ.get("MLFLOW_RUN_ID", "")
    with terminable():
        if injected:
            run = _attach(settings, injected, tags or {}, params or {})
        else:
            parent = RunRef.of(settings, settings.parent_run_id) if settings.parent_run_id else None
            run = _new_run(client, name, tags or {}, params or {}, parent)
        with run:
            yield run


def run_of(settings: Settings, run_id: str) -> TrackedRun:
    """A run that another process began, or that has ended, to add to it without entering it."""
    return TrackedRun(TrackingClient(settings), RunRef.of(settings, run_id))


def start_parent_run(settings: Settings, name: str, tags: Mapping[str, str] | None = None) -> str:
    """Create the run of a whole pipeline, for the launcher; end it with `finish_run`. Raises MlflowUnavailable."""
    client, run = TrackingClient(settings), _new_ref(settings.experiment, name, tags or {})
    with killed_by_a_signal(client, run):
        return run.created(client)


def finish_run(settings: Settings, run_id: str, status: Status) -> None:
    """End a run; if MLflow is away the end is spooled."""
    run_of(settings, run_id).end(status)


def sweep(settings: Settings) -> list[str]:
    """End as KILLED every RUNNING run whose owner was a process of this machine that is gone; returns their ids."""
    condition = f"attributes.status = 'RUNNING' and tags.{OWNER_TAG} LIKE '{owners.machine()} %'"
    client = TrackingClient(settings)
    running = client.find_runs(condition, client.experiment_ids())
    dead = [str(run.info.run_id) for run in running if owners.is_gone(hidden_tag(run, OWNER_TAG))]
    for run_id in dead:
        finish_run(settings, run_id, "KILLED")
    return dead


def end_lost(settings: Settings, name: str, owners_lost: Sequence[str]) -> None:
    """End as KILLED the runs of this name that lost processes had finished: they died before their result was kept."""
    for owner in owners_lost:
        condition = f"attributes.run_name = '{name}' and tags.{OWNER_TAG} = '{owner}'"
        with suppress(MlflowError):
            for run in TrackingClient(settings).find_runs(f"{condition} and attributes.status = 'FINISHED'"):
                finish_run(settings, str(run.info.run_id), "KILLED")


def _new_run(
    client: TrackingClient, name: str, tags: Mapping[str, str], params: Mapping[str, Any], parent: RunRef | None
) -> TrackedRun:
    run = _new_ref(client.settings.experiment, name, tags, parent)
    with killed_by_a_signal(client, run):
        try:
            if parent and not parent.run_id:
                raise MlflowUnavailable(f"MLflow has not seen the parent of run '{name}' yet")
            opened = TrackedRun(client, run.model_copy(update={"run_id": run.created(client)}))
        except MlflowUnavailable as error:
            _log.warning("%s; the run '%s' is spooled and created when it is back", error, name)
            opened = TrackedRun(client, run, spooled=True)
        opened.log_params(params)
    return opened


@contextmanager
def killed_by_a_signal(client: TrackingClient, run: RunRef) -> Iterator[None]:
    """While a run is begun: a signal ends it, which MLflow may have made though its answer has not come."""
    try:
        yield
    except (Terminated, KeyboardInterrupt):
        with deferred_signals(), suppress(MlflowError):
            found = [run.run_id] if run.run_id else run.find(client)
            for run_id in found:
                client.set_terminated(run_id, "KILLED")
        raise


def _new_ref(experiment: str, name: str, tags: Mapping[str, str], parent: RunRef | None = None) -> RunRef:
    own = _tags(origin() | dict(tags) | {OWNER_TAG: owners.owner()})
    create = {"run_name": name, "start_time": int(time.time() * 1000), "tags": own}
    return RunRef(key=f"new-{uuid.uuid4().hex}", experiment=experiment, create=create, parent=parent)


@cache
def origin() -> dict[str, str]:
    """What MLflow shows of a run's origin: user, program, commit."""
    tags = {"mlflow.source.name": "flashslm", "mlflow.source.type": "LOCAL"}
    with suppress(KeyError, OSError):  # a pod's user need not have a name
        tags["mlflow.user"] = getpass.getuser()
    return tags | ({"mlflow.source.git.commit": found} if (found := commit()) else {})


def _attach(settings: Settings, run_id: str, tags: Mapping[str, str], params: Mapping[str, Any]) -> TrackedRun:
    opened, client = run_of(settings, run_id), TrackingClient(settings)
    with killed_by_a_signal(client, RunRef.of(settings, run_id)):
        with suppress(MlflowUnavailable):  # a retried step reopens its run; a wrong id must be an error now
            client.update_run(run_id, status="RUNNING")
        opened.set_tags(dict(tags) | {OWNER_TAG: owners.owner()})
        opened.log_params(params)
    return opened


def _status_of(error: BaseException | None) -> Status:
    if error is None or (type(error) is SystemExit and error.code in (None, 0)):
        return "FINISHED"
    return "KILLED" if isinstance(error, Terminated | KeyboardInterrupt) else "FAILED"


def _tags(tags: Mapping[str, Any]) -> dict[str, str]:
    return {key: without_secrets(str(value)) for key, value in tags.items()}


def _flatten(params: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in params.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)
