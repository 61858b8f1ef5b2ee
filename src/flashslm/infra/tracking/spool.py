"""What MLflow could not take, kept on disk until it can.

One file a run under $FLASHSLM_SPOOL (default `.flashslm/spool`): a first line that names the run (or how to create it),
then one request a line, in order. Every request is one MLflow takes twice without effect (same run, key, step and
timestamp), so that a send which was cut short is simply repeated. A line that cannot be read is left out, and the file
that holds it is set aside.
"""

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from flashslm.infra.settings import Settings
from flashslm.infra.state_files import append_line, locked_file, set_aside, write_whole
from flashslm.infra.storage.s3 import StoreError, StoreUnavailable
from flashslm.infra.tracking.mlflow_api import MlflowApi, MlflowError, MlflowUnavailable

PARENT_TAG = "mlflow.parentRunId"
SPOOL_KEY_TAG = "flashslm.spool_key"
_log = logging.getLogger(__name__)


class RunRef(BaseModel):
    """A run by its id or, while MLflow has not seen it, by how to create it."""

    key: str  # names the spool file; also a tag of a run that was created late
    run_id: str = ""
    experiment: str
    create: dict[str, Any] = {}
    parent: "RunRef | None" = None

    @classmethod
    def of(cls, settings: Settings, run_id: str) -> "RunRef":
        """A run that MLflow knows."""
        return cls(key=run_id, run_id=run_id, experiment=settings.experiment)

    def resolve(self, api: MlflowApi) -> str:
        """The run's id in MLflow; the run (and its parent) is created unless a send that was cut short has done so."""
        if self.run_id:
            return self.run_id
        found = api.search_runs(f"tags.{SPOOL_KEY_TAG} = '{self.key}'")
        return str(found[0]["info"]["run_id"]) if found else create_run(api, self, {SPOOL_KEY_TAG: self.key})


class Request(BaseModel):
    """One request of a run; `run_id` is filled in when it is sent. An artifact is a file and its path in the run."""

    endpoint: str = ""
    body: dict[str, Any] = {}
    file: Path | None = None
    path: str = ""

    def send(self, api: MlflowApi, run_id: str) -> None:
        if self.file is not None:
            api.put_artifact(run_id, self.file, self.path)
        else:
            api.post(self.endpoint, self.body | {"run_id": run_id})


def create_run(api: MlflowApi, run: RunRef, tags: dict[str, str] | None = None) -> str:
    """Create a run in the settings' experiment, with more tags if any are given."""
    more = (tags or {}) | ({PARENT_TAG: run.parent.resolve(api)} if run.parent else {})
    listed = [*run.create["tags"], *({"key": key, "value": value} for key, value in more.items())]
    body = run.create | {"tags": listed, "experiment_id": api.experiment_id}
    return str(api.post("runs/create", body, repeatable=False)["run"]["info"]["run_id"])


def append(run: RunRef, request: Request) -> None:
    """Keep a request of a run; an artifact's file is copied."""
    with _locked() as directory:
        if request.file is not None:
            kept = directory / f"{run.key}.files" / request.path
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(request.file, kept)
            request = request.model_copy(update={"file": kept})
        file = directory / f"{run.key}.jsonl"
        if _read_run(file) is None:
            write_whole(file, run.model_dump_json() + "\n")
        append_line(file, request.model_dump_json(exclude_defaults=True))


def send_spooled(api: MlflowApi, run: RunRef) -> str:
    """Send what is kept of one run and forget it; returns the run's id. Raises MlflowUnavailable."""
    with _locked() as directory:
        file = directory / f"{run.key}.jsonl"
        run_id = run.resolve(api)
        if _read_run(file) is not None:
            _send_file(api, file, run_id)
    return run_id


def spooled() -> bool:
    """Whether anything is kept."""
    with _locked() as directory:
        return any(directory.glob("*.jsonl"))


def backfill(settings: Settings) -> int:
    """Send everything that is kept; returns the number of requests sent. Stops when MLflow does not answer."""
    sent = 0
    with _locked() as directory:
        for file in sorted(directory.glob("*.jsonl")):
            run = _read_run(file)
            if run is None:
                continue
            api = MlflowApi(settings.model_copy(update={"experiment": run.experiment}))
            try:
                sent += _send_file(api, file, run.resolve(api))
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


def _send_file(api: MlflowApi, file: Path, run_id: str) -> int:
    sent, damage = 0, ""
    for line in file.read_bytes().split(b"\n")[1:]:
        try:
            if line:
                Request.model_validate_json(line).send(api, run_id)
                sent += 1
        except (MlflowUnavailable, StoreUnavailable) as error:
            raise MlflowUnavailable(str(error)) from error
        except (MlflowError, StoreError) as error:  # such as a run deleted meanwhile: it would be refused for ever
            _log.warning("dropped from %s: %s", file, error)
            sent += 1
        except (ValueError, OSError) as error:  # a line that was cut off, or an artifact whose copy is gone
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
