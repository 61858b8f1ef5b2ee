"""What a checkpoint costs the steps that run while it is written."""

import json
import shutil
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel

from flashslm.infra.storage.object_store import Manifest, ObjectStore
from flashslm.training.checkpoint import CheckpointStore
from flashslm.training.state import training_tensors
from flashslm.training.step import TrainStep


class CheckpointCost(BaseModel):
    """`slow_down` is what the steps during a checkpoint, and the call that begins it, took longer than as many without.

    Times are the host's, with a wait for the device after every step, in both cases. They are those of the second
    checkpoint, as of every later one. Before the first one a thread takes the host's memory for the copies, which a run
    keeps; a run does so from its first step on, and the first checkpoint takes what is missing.
    """

    checkpoint_bytes: int
    write_s: float
    prepare_s: float  # until the host's memory is taken
    step_ms_preparing: float  # of the steps meanwhile
    first_stop_ms: float  # how long the first checkpoint's call holds the loop
    stop_ms: float
    steps: int  # that ran meanwhile
    step_ms_without: float
    step_ms_during: float
    slow_down: float


def measure_checkpoint(step: TrainStep, run_step: Callable[[], object], steps: int) -> CheckpointCost:
    """Time `steps` steps, then those that run while the state of model and optimizer is stored in a directory.

    `run_step` runs one step and waits for the device.
    """
    without = [_seconds(run_step) for _ in range(steps)]
    with tempfile.TemporaryDirectory(prefix="flashslm-bench-") as name:
        store = _DirectoryStore(Path(name))
        checkpoints = CheckpointStore(cast(ObjectStore, store), "bench", keep=1)
        started, preparing = time.perf_counter(), list[float]()
        checkpoints.prepare(training_tensors(step.model, step.optimizer))
        while not checkpoints.is_prepared():
            preparing.append(_seconds(run_step))
        prepare_s = time.perf_counter() - started
        first_stop_s = _seconds(lambda: checkpoints.save(1, training_tensors(step.model, step.optimizer), {}, []))
        checkpoints.finish()
        store.stored_bytes = 0
        started, during = time.perf_counter(), list[float]()
        stop_s = _seconds(lambda: checkpoints.save(2, training_tensors(step.model, step.optimizer), {}, []))
        while not checkpoints.is_stored():
            during.append(_seconds(run_step))
        write_s = time.perf_counter() - started
        checkpoints.finish()
    usual_s = statistics.median(without)
    return CheckpointCost(
        checkpoint_bytes=store.stored_bytes,
        write_s=write_s,
        prepare_s=prepare_s,
        step_ms_preparing=1e3 * statistics.median(preparing or [usual_s]),
        first_stop_ms=1e3 * first_stop_s,
        stop_ms=1e3 * stop_s,
        steps=len(during),
        step_ms_without=1e3 * usual_s,
        step_ms_during=1e3 * statistics.median(during or [usual_s]),
        slow_down=(stop_s + sum(during)) / (usual_s * max(1, len(during))) - (1 if during else 0),
    )


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


class _DirectoryStore:
    """The object store's part that a checkpoint needs, as files on this machine's disk."""

    def __init__(self, root: Path) -> None:
        self._root, self.stored_bytes = root, 0

    def put_tree(self, directory: Path, kind: str, metadata: dict[str, Any]) -> Manifest:
        digest = uuid.uuid4().hex * 2
        shutil.copytree(directory, self._root / "trees" / digest)
        size = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
        self.stored_bytes += size
        return Manifest(kind=kind, uri=f"s3://bench/{digest}", sha256=digest, bytes=size, metadata=metadata)

    def put_json(self, key: str, value: object) -> str:
        file = self._root / key
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(value), encoding="utf-8")
        return ""

    def get_json(self, key: str) -> tuple[Any, str] | None:
        file = self._root / key
        return (json.loads(file.read_text(encoding="utf-8")), "") if file.exists() else None

    def list(self, prefix: str) -> list[str]:
        keys = (file.relative_to(self._root).as_posix() for file in self._root.rglob("*.json"))
        return sorted(key for key in keys if key.startswith(prefix))

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            (self._root / key).unlink(missing_ok=True)

    def delete_tree(self, manifest: Manifest) -> None:
        shutil.rmtree(self._root / "trees" / manifest.sha256, ignore_errors=True)
