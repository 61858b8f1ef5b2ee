"""Training checkpoints in the object store: whole or absent, newest good one first, old ones pruned."""

import json
import logging
import tempfile
import warnings
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from flashslm.infra.process.interrupts import stop_requested
from flashslm.infra.storage.object_store import Manifest, ObjectCorrupt, ObjectMissing, ObjectStore, StoreUnavailable

TENSORS, VALUES = "state.safetensors", "state.json"
_TRAINING_WAITS_S = 5.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingState:
    """What a run needs to continue exactly: named tensors, and everything else as JSON values."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]


class CheckpointStore:
    """The newest `keep` checkpoints of one run.

    A checkpoint is a content-addressed tree; `checkpoints/<run_key>/<step>.json` points to it and is written after it,
    so a save that is cut off leaves the checkpoint before it in force.
    """

    def __init__(self, store: ObjectStore, run_key: str, keep: int):
        if keep < 1:
            raise ValueError(f"keep is {keep}: at least one checkpoint must be kept")
        self.store, self.run_key, self.keep = store, run_key, keep
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: tuple[int, Future[None]] | None = None

    def save(self, step: int, state: TrainingState) -> None:
        """Store the state after `step` optimizer steps and remove checkpoints beyond `keep`.

        Where that takes longer, because the state is large or the store away, the state is on this machine's disk when
        the call returns, and training goes on: one checkpoint waits, and the next save waits for it.
        """
        self.finish()
        directory = tempfile.TemporaryDirectory(prefix="flashslm-checkpoint-")
        path = Path(directory.name)
        save_file({k: t.detach().cpu().contiguous() for k, t in state.tensors.items()}, path / TENSORS)
        # The run key makes the tree this run's own: no other run can hold the same content when it is removed.
        values = {"run_key": self.run_key, "step": step, "values": state.values}
        (path / VALUES).write_text(json.dumps(values), encoding="utf-8")
        self._pending = (step, self._thread.submit(self._store, step, directory))
        wait([self._pending[1]], timeout=_TRAINING_WAITS_S)
        if self._pending[1].done():
            self.finish()

    def __enter__(self) -> "CheckpointStore":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: TracebackType | None) -> None:
        """The last checkpoint is stored before the block is left; an error that ends the block goes before its own."""
        try:
            self.finish()
        except Exception as failure:
            if error is None:
                raise
            _log.warning("the last checkpoint was not stored: %s", failure)

    def finish(self) -> None:
        """Wait until the last checkpoint is stored; raises what kept it from that.

        A process that is asked to end does not wait for a store that is away: the checkpoint is lost with a warning.
        """
        if self._pending is None:
            return
        (step, stored), self._pending = self._pending, None
        try:
            stored.result()
        except StoreUnavailable as error:
            if not stop_requested():
                raise
            _log.warning("the checkpoint of step %d was not stored: %s", step, error)

    def _store(self, step: int, directory: "tempfile.TemporaryDirectory[str]") -> None:
        with directory as name:
            manifest = self.store.put_tree(Path(name), "checkpoint", {"run_key": self.run_key, "step": step})
        self.store.put_json(self.key(step), manifest.model_dump(mode="json"))
        for key in self._keys()[: -self.keep]:
            self._remove(key)

    def load_latest(self) -> tuple[int, TrainingState] | None:
        """The newest checkpoint that verifies, or None.

        One that is missing or corrupt is removed with a warning and the one before it is taken. StoreUnavailable is
        raised as it is: a server that does not answer is not a reason to start from the beginning.
        """
        for key in reversed(self._keys()):
            try:
                return self._load(key)
            except (ObjectMissing, ObjectCorrupt, ValidationError) as error:
                warnings.warn(f"checkpoint {key} is unusable, trying the one before: {error}", stacklevel=2)
                self._remove(key)
        return None

    def _load(self, key: str) -> tuple[int, TrainingState]:
        manifest = self._manifest(key)
        with tempfile.TemporaryDirectory(prefix="flashslm-checkpoint-") as name:
            directory = self.store.get_tree(manifest, Path(name) / "tree")
            saved = json.loads((directory / VALUES).read_text(encoding="utf-8"))
            return saved["step"], TrainingState(load_file(directory / TENSORS), saved["values"])

    def _remove(self, key: str) -> None:
        """Remove the pointer, then the tree: a corrupt tree left behind could pass for complete when put again."""
        try:
            manifest = self._manifest(key)
        except (ObjectMissing, ObjectCorrupt, ValidationError):
            self.store.delete([key])
            return
        self.store.delete([key])
        self.store.delete_tree(manifest)

    def _manifest(self, key: str) -> Manifest:
        found = self.store.get_json(key)
        if found is None:
            raise ObjectMissing(f"{key} is gone")
        return Manifest.model_validate(found[0])

    def _keys(self) -> list[str]:
        """Pointers, oldest first."""
        return sorted(self.store.list(self._prefix))

    def key(self, step: int) -> str:
        """The pointer to the checkpoint of a step."""
        return f"{self._prefix}{step:08d}.json"

    @property
    def _prefix(self) -> str:
        return f"checkpoints/{self.run_key}/"
