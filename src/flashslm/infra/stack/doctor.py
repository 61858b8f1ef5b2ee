"""Try everything a run needs of S3, MLflow and the disk, and say what to do about what fails."""

import shutil
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel

from flashslm.infra.settings import Settings
from flashslm.infra.storage.errors import PreconditionFailed, StoreUnavailable
from flashslm.infra.storage.object_store import ObjectStore
from flashslm.infra.tracking.mlflow_client import MlflowUnavailable, TrackingClient

_MIN_FREE_BYTES = 5 * 10**9
_S3_HINT = "check AWS_ENDPOINT_URL_S3, the keys and FLASHSLM_BUCKET; `flashslm stack up` starts the embedded server"
_MLFLOW_HINT = "check MLFLOW_TRACKING_URI and its credentials; `flashslm stack up` starts the embedded server"


class Check(BaseModel):
    """One trial; `detail` is what was seen, `hint` what to do about a failure."""

    name: str
    ok: bool
    time_ms: float
    detail: str
    hint: str


class _Failed(RuntimeError):
    """A trial that ran and gave the wrong result."""


def diagnose(settings: Settings, directory: Path | None = None) -> list[Check]:
    """Run every check; none stops the others. Probe objects and the probe run are removed again.

    `directory` is where a run keeps its files (default: the current one): its disk must have room.
    """
    return [*_check_s3(settings), *_check_mlflow(settings), _check_disk(directory or Path.cwd())]


def _check_s3(settings: Settings) -> list[Check]:
    store = ObjectStore(settings, patience_s=2)
    key, value = f"probe/{uuid.uuid4().hex}.json", {"probe": settings.bucket}

    def read() -> str:
        found = store.get_json(key)
        if found is None or found[0] != value:
            raise _Failed(f"wrote {value}, read {found}")
        return "the value that was written"

    def conditional() -> str:
        for if_absent, if_match in ((True, None), (False, '"0"')):
            try:
                store.put_json(key, value, if_absent=if_absent, if_match=if_match)
            except PreconditionFailed:
                continue
            raise _Failed(f"a put with {'If-Match' if if_match else 'If-None-Match'} replaced an object it must not")
        return "refused, as they must be"

    def delete() -> str:
        store.delete([key])
        if store.get_json(key) is not None:
            raise _Failed("the object is still there")
        return "gone"

    semantics = "this S3 server lacks conditional puts (If-None-Match, If-Match): use one that has them"
    return [
        _run("S3 write", lambda: f"etag {store.put_json(key, value)}", _S3_HINT),
        _run("S3 read", read, _S3_HINT),
        _run("S3 conditional put", conditional, semantics),
        _run("S3 delete", delete, _S3_HINT),
    ]


def _check_mlflow(settings: Settings) -> list[Check]:
    runs: list[str] = []

    def client() -> TrackingClient:
        return TrackingClient(settings)

    def create() -> str:
        runs.append(client().create_run(client().experiment_id, run_name="doctor").info.run_id)
        return f"run {runs[0]} in experiment '{settings.experiment}'"

    def artifact() -> str:
        if not runs:
            raise _Failed("there is no run to put an artifact into")
        with tempfile.TemporaryDirectory() as temporary:
            file = Path(temporary) / "probe.txt"
            file.write_text(runs[0], encoding="utf-8")
            client().log_artifact(runs[0], str(file))
            back = Path(client().download_artifacts(runs[0], "probe.txt", temporary))
            if back.read_text(encoding="utf-8") != runs[0]:
                raise _Failed("the artifact came back changed")
        return "written and read back"

    def delete() -> str:
        for run_id in runs:
            client().delete_run(run_id)
        return "deleted" if runs else "nothing to delete"

    def registry() -> str:
        return f"{len(client().all_pages('search_registered_models'))} models"

    artifacts = (
        "start the MLflow server with --serve-artifacts and credentials of its S3, or let it hand out s3:// paths"
    )
    return [
        _run("MLflow run", create, _MLFLOW_HINT),
        _run("MLflow artifact", artifact, artifacts),
        _run("MLflow delete", delete, _MLFLOW_HINT),
        _run("MLflow registry", registry, "the server's backend store must be a database"),
    ]


def _check_disk(directory: Path) -> Check:
    def free() -> str:
        found = shutil.disk_usage(directory).free
        if found < _MIN_FREE_BYTES:
            raise _Failed(f"{found:,} bytes free in {directory}, at least {_MIN_FREE_BYTES:,} wanted")
        return f"{found:,} bytes free in {directory}"

    return _run("disk space", free, "remove old run directories or work on another disk")


def _run(name: str, trial: Callable[[], str], hint: str) -> Check:
    began_s = time.perf_counter()
    try:
        detail, ok = trial(), True
    except Exception as error:  # whatever it is, it is the finding
        detail, ok = str(error), False
        hint = {StoreUnavailable: _S3_HINT, MlflowUnavailable: _MLFLOW_HINT}.get(type(error), hint)
    return Check(
        name=name, ok=ok, time_ms=(time.perf_counter() - began_s) * 1000, detail=detail, hint="" if ok else hint
    )
