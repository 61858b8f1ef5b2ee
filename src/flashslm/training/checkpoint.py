"""Training checkpoints in the object store: sharded, stored in the background, whole or absent, old ones pruned.

Each rank stores its own part as safetensors, in torch's distributed format, which any number of ranks reads back.
"""

import json
import logging
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from torch import Tensor

from flashslm.infra.process.interrupts import stop_requested
from flashslm.infra.storage.errors import ObjectCorrupt, ObjectMissing, StoreUnavailable
from flashslm.infra.storage.object_store import Manifest, ObjectStore
from flashslm.training.distributed import HostGroup, any_rank, current_world, own_share
from flashslm.training.state import HostCopy

Row = dict[str, float]
Result = TypeVar("Result")
_TRAINING_WAITS_S = 5.0  # for a checkpoint, on a CPU: there nothing is gained by training meanwhile
_UNUSABLE = (ObjectMissing, ObjectCorrupt, ValidationError)
_log = logging.getLogger(__name__)
warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # a run of one process has no process group


class Checkpoint(BaseModel):
    """What points to a checkpoint: its trees, one of each rank that saved it, and everything that is not a tensor."""

    step: int
    trees: list[Manifest]
    values: dict[str, Any]
    validation_loss_nats: float | None  # where the step was validated


class CheckpointStore:
    """The newest `keep` checkpoints of one run, and the one of lowest validation loss.

    `checkpoints/<run_key>/<step>.json` points to a checkpoint's trees and is written after them, so a save that is cut
    off leaves the checkpoint before it in force. Rows of metrics are in `rows/<step>.json` beside it, each once. Under
    torchrun every rank calls every method.
    """

    def __init__(self, store: ObjectStore, run_key: str, keep: int):
        if keep < 1:
            raise ValueError(f"keep is {keep}: at least one checkpoint must be kept")
        self.store, self.run_key, self.keep = store, run_key, keep
        self._group, self._copy = HostGroup(), HostCopy()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: tuple[int, Future[None]] | None = None
        self._stored_step = 0

    def prepare(self, tensors: dict[str, Tensor]) -> None:
        """Take the host's memory for copies of tensors on a GPU ahead, in a thread; the first save is as long without.

        The tensors are those that will be saved, with any values.
        """
        self._copy.prepare(own_share(tensors))

    def is_prepared(self) -> bool:
        """Whether no rank is still at it."""
        return not any_rank(self._copy.preparing)

    def save(
        self,
        step: int,
        tensors: dict[str, Tensor],
        values: dict[str, Any],
        rows: list[Row],
        validation_loss_nats: float | None = None,
    ) -> None:
        """Copy the state after `step` optimizer steps to the host and store it while training continues.

        One checkpoint waits to be stored; the next save waits for it. `tensors` may be sharded, `values` are JSON,
        `rows` the metrics since the save before.
        """
        self.finish()
        copy = self._copy(own_share(tensors))
        about = Checkpoint(step=step, trees=[], values=values, validation_loss_nats=validation_loss_nats)
        self._pending = (step, self._thread.submit(self._store, about, copy, rows))
        if not self._copy.from_gpu:
            wait([self._pending[1]], timeout=_TRAINING_WAITS_S)
        if self._pending[1].done():
            self.finish()

    def __enter__(self) -> "CheckpointStore":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: TracebackType | None) -> None:
        """The last checkpoint is stored before the block is left; an error that ends the block goes before its own."""
        self._copy.stop_preparing()
        if error is None:
            self.finish()
        else:
            self._finish_if_possible()

    def kept_at_end(self, step: int, steps: int) -> str:
        """What a training that is ended after that step continues from, once its last checkpoint is stored or lost."""
        self._finish_if_possible()
        if self._stored_step == step:
            return f"stopped after step {step} of {steps}, and its checkpoint is stored"
        newest = f"the newest that is stored is of step {self._stored_step}" if self._stored_step else "none is stored"
        return f"stopped after step {step} of {steps} without its checkpoint; {newest}"

    def _finish_if_possible(self) -> None:
        try:
            self.finish()
        except Exception as failure:
            _log.warning("the last checkpoint was not stored: %s", failure)

    def is_stored(self) -> bool:
        """Whether no rank still writes the last checkpoint."""
        return not any_rank(self._pending is not None and not self._pending[1].done())

    def finish(self) -> None:
        """Wait until the last checkpoint is stored; raises what kept it from that.

        A process that is asked to end does not wait for a store that is away: the checkpoint is lost with a warning.
        """
        if self._pending is None:
            return
        (step, stored), self._pending = self._pending, None
        try:
            stored.result()
            self._stored_step = step
        except StoreUnavailable as error:
            if not stop_requested():
                raise
            _log.warning("the checkpoint of step %d was not stored: %s", step, error)

    def _store(self, about: Checkpoint, copy: dict[str, Tensor], rows: list[Row]) -> None:
        from torch.distributed.checkpoint.state_dict_saver import save

        from flashslm.training.safetensors_writer import SafetensorsWriter

        with tempfile.TemporaryDirectory(prefix="flashslm-checkpoint-") as name:
            writer = SafetensorsWriter(name)
            save(copy, storage_writer=writer, process_group=self._group.handle, no_dist=self._group.handle is None)
            # The run key makes the tree this run's own: no other run can hold the same content when it is removed.
            owner = {"run_key": self.run_key, "step": about.step}
            (Path(name) / "owner.json").write_text(json.dumps(owner | {"rank": current_world().rank}))
            trees = self._on_every_rank(lambda: self.store.put_tree(Path(name), "checkpoint", owner))
        if current_world().is_main:
            self.store.put_json(f"{self._prefix}rows/{about.step:08d}.json", rows)
            self.store.put_json(self.key(about.step), about.model_copy(update={"trees": trees}).model_dump(mode="json"))
            self._prune()

    def _on_every_rank(self, work: Callable[[], Result]) -> list[Result]:
        """Every rank's result; what one rank raises, all raise, so that none waits for it."""
        found: Result | Exception
        try:
            found = work()
        except Exception as error:
            found = error
        results = self._group.gather(found)
        for result in results:
            if isinstance(result, Exception):
                raise result
        return [result for result in results if not isinstance(result, Exception)]

    def _prune(self) -> None:
        keys = self._keys()
        if len(keys) <= self.keep:
            return
        losses: dict[str, float] = {}
        for key in keys:
            with suppress(*_UNUSABLE):  # a damaged pointer must not end the training
                if (loss := self._read(key).validation_loss_nats) is not None:
                    losses[key] = loss
        best = min(losses, key=lambda key: losses[key], default="")
        for key in keys[: -self.keep]:
            if key != best:
                self._remove(key)

    def load_latest(self, tensors: Callable[[], dict[str, Tensor]]) -> tuple[Checkpoint, list[Row]] | None:
        """Fill the `tensors`, asked for only then, from the newest checkpoint that verifies; None if there is none.

        Returns it with all rows of metrics up to it. One that is missing or corrupt is removed with a warning and the
        one before it is taken. StoreUnavailable is raised as it is: a server that does not answer is not a reason to
        start from the beginning.
        """
        with _node_directory() as root:
            found = self._group.broadcast(self._newest(root) if current_world().is_main else None)
            if found is None:
                return None
            checkpoint, rows = found
            self._read_into(tensors(), self._fetch(checkpoint, root))
            self._group.gather(None)  # no rank reads the directory any more
        self._stored_step = checkpoint.step
        return checkpoint, rows

    def _newest(self, root: Path) -> tuple[Checkpoint, list[Row]] | None:
        """Looks for the newest each time: another run of the same work may store and prune while this one fetches."""
        tried: set[str] = set()
        while keys := [key for key in self._keys() if key not in tried]:
            key = keys[-1]
            try:
                checkpoint = self._read(key)
                self._fetch(checkpoint, root)
                return checkpoint, self._rows(checkpoint.step)
            except _UNUSABLE as error:
                warnings.warn(f"checkpoint {key} is unusable, trying another: {error}", stacklevel=2)
                self._remove(key)
                tried.add(key)
        return None

    def _fetch(self, checkpoint: Checkpoint, root: Path) -> list[Path]:
        """The trees' directories; what another process of this node has fetched is not fetched again."""
        return [self.store.get_tree(tree, root / tree.sha256) for tree in checkpoint.trees]

    def _read_into(self, tensors: dict[str, Tensor], trees: list[Path]) -> None:
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
        from torch.distributed.checkpoint.state_dict_loader import load

        with tempfile.TemporaryDirectory(prefix="flashslm-resume-") as together:
            for file in (file for tree in trees for file in tree.glob("*.safetensors")):
                (Path(together) / file.name).symlink_to(file)
            reader, group = HuggingFaceStorageReader(together), self._group.handle
            load(tensors, storage_reader=reader, process_group=group, no_dist=group is None)

    def _rows(self, last: int) -> list[Row]:
        """Each step's once: a run that fell back to an earlier checkpoint has stored some a second time.

        Damaged ones are left out with a warning: the weights are worth more than a gap in the curve. Raises
        ObjectCorrupt for those of the step itself, which are trained again from the checkpoint before.
        """
        by_step: dict[float, Row] = {}
        for key in self.store.list(f"{self._prefix}rows/"):
            if int(Path(key).stem) <= last:
                try:
                    found = self.store.get_json(key)
                    by_step |= {row["step"]: row for row in (found[0] if found else [])}
                except (ObjectCorrupt, TypeError, KeyError) as error:
                    if int(Path(key).stem) == last:
                        raise ObjectCorrupt(f"its rows of metrics are damaged, {key}: {error}") from error
                    warnings.warn(f"rows of metrics are lost, {key}: {error}", stacklevel=2)
        return [by_step[step] for step in sorted(by_step)]

    def _remove(self, key: str) -> None:
        """Remove the pointer, then the trees: a corrupt tree left behind could pass for complete when put again."""
        try:
            trees = self._read(key).trees
        except _UNUSABLE:
            trees = []
        self.store.delete([key])
        for tree in trees:
            self.store.delete_tree(tree)

    def _read(self, key: str) -> Checkpoint:
        found = self.store.get_json(key)
        if found is None:
            raise ObjectMissing(f"{key} is gone")
        return Checkpoint.model_validate(found[0])

    def _keys(self) -> list[str]:
        """Pointers, oldest first."""
        pattern = re.escape(self._prefix) + r"\d+\.json"
        return [key for key in self.store.list(self._prefix) if re.fullmatch(pattern, key)]

    def key(self, step: int) -> str:
        """The pointer to the checkpoint of a step."""
        return f"{self._prefix}{step:08d}.json"

    @property
    def _prefix(self) -> str:
        return f"checkpoints/{self.run_key}/"


@contextmanager
def _node_directory() -> Iterator[Path]:
    """A directory that the processes of torchrun on this node share; it is gone afterwards."""
    if current_world().size == 1:
        with tempfile.TemporaryDirectory(prefix="flashslm-resume-") as name:
            yield Path(name)
        return
    path = Path(tempfile.gettempdir()) / f"flashslm-resume-{os.getuid()}-{os.getppid()}"  # their parent is the agent
    path.mkdir(mode=0o700, exist_ok=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
