"""What MLflow could not take, kept on disk until it can.

One file a run under $FLASHSLM_SPOOL (default `.flashslm/spool`): a first line that names the run (or how to create it),
then one entry a line, in order. MLflow takes every entry twice without effect (same run, key, step and timestamp), so
that a send which was cut short is simply repeated. A line that cannot be read is left out, and the file that holds it
is set aside.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict

from flashslm.infra.settings import Settings
from flashslm.infra.state_files import append_line, locked_file, set_aside, write_whole
from flashslm.infra.storage.errors import StoreError, StoreUnavailable
from flashslm.infra.tracking.mlflow_client import HIDDEN, MlflowError, MlflowUnavailable, TrackingClient

PARENT_TAG, NOTE_TAG = "mlflow.parentRunId", "mlflow.note.content"
KEY_TAG = f"{HIDDEN}spool_key"
_MAX_DIGEST_CHARACTERS = 36
_log = logging.getLogger(__name__)


class RunRef(BaseModel):
    """A run by its id or, while MLflow has not seen it, by how to create it."""

    key: str  # names the spool file; also a tag of the run
    run_id: str = ""
    experiment: str
    create: dict[str, Any] = {}  # run_name, start_time, tags
    parent: "RunRef | None" = None

    @classmethod
    def of(cls, settings: Settings, run_id: str) -> "RunRef":
        """A run that MLflow knows."""
        return cls(key=run_id, run_id=run_id, experiment=settings.experiment)

    def resolve(self, client: TrackingClient) -> str:
        """The run's id in MLflow; the run (and its parent) is created unless a send that was cut short has done so."""
        if self.run_id:
            return self.run_id
        found = self.find(client)
        return found[0] if found else self.created(client)

    def find(self, client: TrackingClient) -> list[str]:
        """The ids of the runs that MLflow made for this one, whether or not its answer came."""
        return [str(run.info.run_id) for run in client.find_runs(f"tags.{KEY_TAG} = '{self.key}'")]

    def created(self, client: TrackingClient) -> str:
        """Create the run in the settings' experiment; returns its id."""
        more = {KEY_TAG: self.key} | ({PARENT_TAG: self.parent.resolve(client)} if self.parent else {})
        run = client.create_run(client.experiment_id, **self.create | {"tags": self.create["tags"] | more})
        return str(run.info.run_id)


class MetricPoint(NamedTuple):
    """One value of a metric."""

    key: str
    value: float
    timestamp_ms: int
    step: int


class Entry(BaseModel):
    """What a run logs at once. `dataset` is name, address and digest; a file has its path among the artifacts."""

    model_config = ConfigDict(ser_json_inf_nan="strings", extra="forbid")

    metrics: list[MetricPoint] = []
    params: dict[str, str] = {}
    tags: dict[str, str] = {}
    dataset: tuple[str, str, str] | None = None
    file: Path | None = None
    path: str = ""
    status: str = ""
    end_time_ms: int | None = None

    def send(self, client: TrackingClient, run_id: str) -> None:
        """Raises MlflowError, StoreError, OSError."""
        from mlflow import entities

        if self.metrics or self.params or self.tags:
            metrics = [entities.Metric(*point) for point in self.metrics]
            params = [entities.Param(*pair) for pair in self.params.items()]
            tags = [entities.RunTag(*pair) for pair in self.tags.items()]
            client.log_batch(run_id, metrics=metrics, params=params, tags=tags)
        if self.dataset:
            name, uri, digest = self.dataset
            data = entities.Dataset(name, digest[:_MAX_DIGEST_CHARACTERS], "s3", json.dumps({"uri": uri}))
            client.log_inputs(run_id, datasets=[entities.DatasetInput(data, [])])
        if self.file:
            client.log_artifact(run_id, str(self.file), str(Path(self.path).parent).strip("."))
        if self.end_time_ms:
            client.set_terminated(run_id, self.status, self.end_time_ms)


def append(run: RunRef, entry: Entry) -> None:
    """Keep an entry of a run; a file is copied."""
    with _locked() as directory:
        if entry.file:
            kept = directory / f"{run.key}.files" / entry.path
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(entry.file, kept)
            entry = entry.model_copy(update={"file": kept})
        file = directory / f"{run.key}.jsonl"
        if _read_run(file) is None:
            write_whole(file, run.model_dump_json() + "\n")
        append_line(file, entry.model_dump_json(exclude_defaults=True))


def send_spooled(client: TrackingClient, run: RunRef) -> str:
    """Send what is kept of one run and forget it; returns the run's id. Raises MlflowUnavailable."""
    with _locked() as directory:
        file = directory / f"{run.key}.jsonl"
        run_id = run.resolve(client)
        if _read_run(file) is not None:
            _send_file(client, file, run_id)
    return run_id


def spooled() -> bool:
    """Whether anything is kept."""
    with _locked() as directory:
        return any(directory.glob("*.jsonl"))


def backfill(settings: Settings) -> int:
    """Send everything that is kept; returns the number of entries sent. Stops when MLflow does not answer."""
    sent = 0
    with _locked() as directory:
        for file in sorted(directory.glob("*.jsonl")):
            if (run := _read_run(file)) is None:
                continue
            client = TrackingClient(settings.model_copy(update={"experiment": run.experiment}))
            try:
                sent += _send_file(client, file, run.resolve(client))
            except MlflowUnavailable as error:
                _log.warning("%s; %s stays for the next back-fill", error, file)
                break
            except MlflowError as error:  # it refuses this run: those of others are sent
                set_aside(file, str(error))
    return sent


def _read_run(file: Path) -> RunRef | None:
    """The run that a spool file names; a file whose first line cannot be read is set aside, and then there is none."""
    if not file.exists():
        return None
    try:
        return RunRef.model_validate_json(file.read_bytes().partition(b"\n")[0])
    except (ValueError, OSError) as error:
        set_aside(file, " ".join(str(error).split())[:200])
        return None


def _send_file(client: TrackingClient, file: Path, run_id: str) -> int:
    sent, damage = 0, ""
    for line in filter(None, file.read_bytes().split(b"\n")[1:]):
        try:
            Entry.model_validate_json(line).send(client, run_id)
            sent += 1
        except (MlflowUnavailable, StoreUnavailable) as error:
            raise MlflowUnavailable(str(error)) from error
        except (MlflowError, StoreError) as error:  # such as a run deleted meanwhile: it would be refused for ever
            _log.warning("dropped from %s: %s", file, error)
            sent += 1
        except (ValueError, OSError) as error:  # a line that was cut off, or a file whose copy is gone
            damage = " ".join(str(error).split())[:200]
    if damage:
        set_aside(file, damage)
    else:
        file.unlink()
        shutil.rmtree(file.with_suffix(".files"), ignore_errors=True)
    return sent


@contextmanager
def _locked() -> Iterator[Path]:
    """The spool directory, held alone: writers and senders of several processes share it."""
    directory = Path(os.environ.get("FLASHSLM_SPOOL") or ".flashslm/spool").resolve()
    with locked_file(directory / "lock"):
        yield directory
