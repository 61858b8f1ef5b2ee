"""Training checkpoints in the object store: whole or absent, newest good one first, old ones pruned."""

import json
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from flashslm.infra.storage.object_store import Manifest, ObjectCorrupt, ObjectMissing, ObjectStore

TENSORS, VALUES = "state.safetensors", "state.json"


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

    def save(self, step: int, state: TrainingState) -> None:
        """Store the state after `step` optimizer steps and remove checkpoints beyond `keep`."""
        with tempfile.TemporaryDirectory(prefix="flashslm-checkpoint-") as name:
            directory = Path(name)
            save_file({k: t.detach().cpu().contiguous() for k, t in state.tensors.items()}, directory / TENSORS)
            # The run key makes the tree this run's own: no other run can hold the same content when it is removed.
            values = {"run_key": self.run_key, "step": step, "values": state.values}
            (directory / VALUES).write_text(json.dumps(values), encoding="utf-8")
            manifest = self.store.put_tree(directory, "checkpoint", {"run_key": self.run_key, "step": step})
        self.store.put_json(self._key(step), manifest.model_dump(mode="json"))
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

    def _key(self, step: int) -> str:
        return f"{self._prefix}{step:08d}.json"

    @property
    def _prefix(self) -> str:
        return f"checkpoints/{self.run_key}/"
