"""What nothing needs any more, in the object store and on this machine: found first, removed when that is asked for.

Needed is what a registry version, a schedule or the record of a champion names, the compiled kernels, what a kept run
or an entry of this home's cache names, and whatever is younger than the age that is given: other machines' runs may be
making use of it.
Long sections of recipes (`long_sections`) stay for good: the recurring runs of a cluster, which are not seen from here,
name them as long as they exist.
"""

import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from flashslm.infra.registry import long_tags, model_registry
from flashslm.infra.settings import Settings
from flashslm.infra.storage.object_store import ObjectEntry, ObjectStore
from flashslm.infra.storage.tree import CAS
from flashslm.launch.local.kept_results import cache_directory, kept_manifests

_DIGEST = re.compile(rb"[0-9a-f]{64}")
_RUN = re.compile(r"\d{8}-\d{6}-.+")
_RECORDS = ("schedules/", "registry/", "kernels/", long_tags.PREFIX)
_CHECKPOINTS, _PRETRAINING, _PREPARATION, _PROBES = "checkpoints/", "pretraining/", "preparation/", "probe/"
_SCALING = "scaling/"


class Garbage(NamedTuple):
    """One thing that can go: keys of the store, or a path."""

    kind: str
    name: str
    bytes: int
    reason: str
    keys: tuple[str, ...] = ()  # in the order in which they are removed
    path: Path | None = None


@dataclass
class Collector:
    """Looks for garbage; `older_than_s` is the age below which nothing goes. The home must not be in use."""

    settings: Settings
    home: Path
    runs: Path
    older_than_s: float
    now_s: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        self.store = ObjectStore(self.settings)
        self.needed: set[str] = set()

    def find(self) -> list[Garbage]:
        """Everything that can go, what others refer to last."""
        local = [*self._old_runs(), *self._old_results(), *self._set_aside()]
        gone = {garbage.path for garbage in local}
        self.needed = model_registry.trees_needed(self.settings) | self._named_in_store() | self._named_here(gone)
        checkpoints = list(self._checkpoints())
        return [*local, *self._old_copies(), *checkpoints, *self._records(), *self._trees(checkpoints)]

    def remove(self, garbage: Garbage) -> None:
        """Remove one of them; of a tree the index goes first, so that no reader begins on it."""
        if garbage.path is not None:
            if garbage.path.is_dir():
                shutil.rmtree(garbage.path)
            else:
                garbage.path.unlink(missing_ok=True)
        for key in garbage.keys[:1]:
            self.store.delete([key])
        self.store.delete(garbage.keys[1:])

    def _is_old(self, modified_s: float) -> bool:
        return self.now_s - modified_s > self.older_than_s

    def _named_in_store(self) -> set[str]:
        keys = [key for prefix in _RECORDS for key in self.store.list(prefix)]
        return {digest for key in keys if (found := self.store.get_bytes(key)) for digest in _digests(found[0])}

    def _named_here(self, gone: set[Path | None]) -> set[str]:
        """The trees of runs and of cached results that stay."""
        files = [path for run in self._run_directories() if run not in gone for path in (run / "artifacts").glob("*")]
        files += [file for file, _ in kept_manifests(self.home) if file not in gone]
        return {digest for file in files if file.is_file() for digest in _digests(file.read_bytes())}

    def _run_directories(self) -> list[Path]:
        found = self.runs.iterdir() if self.runs.is_dir() else ()
        return [path for path in found if path.is_dir() and not path.is_symlink() and _RUN.fullmatch(path.name)]

    def _old_runs(self) -> Iterator[Garbage]:
        latest = (self.runs / "latest").resolve()
        for run in self._run_directories():
            if run.resolve() != latest and self._is_old(_newest(run)):
                yield Garbage("run", str(run), _size(run), "old", path=run)

    def _old_results(self) -> Iterator[Garbage]:
        """Entries of kfp's cache, and the manifests that they name: their steps would run again."""
        for file, _ in kept_manifests(self.home):
            if self._is_old(file.stat().st_mtime):
                yield Garbage("cached result", str(file), file.stat().st_size, "old", path=file)
        for entry in cache_directory(self.home).glob("*.json"):
            if self._is_old(entry.stat().st_mtime):
                yield Garbage("cached result", str(entry), entry.stat().st_size, "old", path=entry)

    def _set_aside(self) -> Iterator[Garbage]:
        for path in self.home.rglob("*.damaged-*"):
            if self._is_old(path.lstat().st_mtime):
                yield Garbage("damaged file", str(path), _size(path), "old", path=path)

    def _old_copies(self) -> Iterator[Garbage]:
        """Downloaded trees: they are fetched again when they are needed."""
        directory = self.home / "trees"
        for tree in directory.iterdir() if directory.is_dir() else ():
            if self._is_old(tree.lstat().st_mtime):
                yield Garbage("local copy", str(tree), _size(tree), "old", path=tree)

    def _checkpoints(self) -> Iterator[Garbage]:
        """Those of trainings that have finished, or that nothing continued for long.

        One that stores checkpoints after its end is done again: its result was lost, or another run of the same work
        goes on.
        """
        ended = [(str(m.metadata.get("run_key")), f) for f, m in kept_manifests(self.home) if m.kind == "checkpoint"]
        finished_s = {run_key: file.stat().st_mtime for run_key, file in ended}
        for key, entry in self.store.entries(_PRETRAINING).items():
            if key.endswith("/outcome.json"):
                finished_s[_run_key(key)] = max(entry.modified_s, finished_s.get(_run_key(key), 0.0))
        entries = self.store.entries(_CHECKPOINTS)
        newest: dict[str, float] = {}
        for key, entry in entries.items():
            newest[_run_key(key)] = max(entry.modified_s, newest.get(_run_key(key), 0.0))
        for key, entry in entries.items():
            is_finished = finished_s.get(_run_key(key), 0.0) >= newest[_run_key(key)]
            if is_finished or self._is_old(newest[_run_key(key)]):
                yield Garbage("checkpoint", key, entry.bytes, "finished" if is_finished else "old", (key,))

    def _records(self) -> Iterator[Garbage]:
        for prefix in (_PRETRAINING, _PREPARATION, _PROBES, _SCALING):
            for key, entry in self.store.entries(prefix).items():
                if self._is_old(entry.modified_s):
                    yield Garbage("record", key, entry.bytes, "old", (key,))

    def _trees(self, checkpoints: list[Garbage]) -> Iterator[Garbage]:
        """Trees that nothing names. Those of removed checkpoints belong to no other run, whatever their age."""
        removed = {garbage.name for garbage in checkpoints}
        of_checkpoints = {key: self._digests_at(key) for key in self.store.list(_CHECKPOINTS)}
        kept = {digest for key, digests in of_checkpoints.items() if key not in removed for digest in digests}
        ended = {digest for key, digests in of_checkpoints.items() if key in removed for digest in digests}
        for digest, entries in self._by_tree().items():
            index = f"{CAS}{digest[:2]}/{digest}.index.json"
            is_old = self._is_old(max(entry.modified_s for entry in entries.values()))
            if digest not in self.needed | kept and (is_old or digest in ended):
                keys = (index, *sorted(set(entries) - {index}))
                reason = "of a checkpoint that goes" if digest in ended else "nothing names it"
                yield Garbage("tree", digest, sum(entry.bytes for entry in entries.values()), reason, keys)

    def _digests_at(self, key: str) -> set[str]:
        found = self.store.get_bytes(key)
        return _digests(found[0]) if found else set()

    def _by_tree(self) -> dict[str, dict[str, ObjectEntry]]:
        """Objects by the tree they belong to, with an index or without one (a store that was cut off)."""
        trees: dict[str, dict[str, ObjectEntry]] = {}
        for key, entry in self.store.entries(CAS).items():
            if found := re.match(rf"{CAS}[0-9a-f]{{2}}/([0-9a-f]{{64}})[./]", key):
                trees.setdefault(found[1], {})[key] = entry
        return trees


def _digests(content: bytes) -> set[str]:
    return {digest.decode() for digest in _DIGEST.findall(content)}


def _run_key(key: str) -> str:
    return key.split("/")[1]


def _newest(directory: Path) -> float:
    return max(path.lstat().st_mtime for path in (directory, *directory.rglob("*")))


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in files if not file.is_dir())
