"""Files of a stored tree that are fetched when they are asked for, into a cache of bounded size."""

import os
import shutil
import tempfile
import threading
import uuid
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import BinaryIO

from flashslm.infra.process import owners
from flashslm.infra.storage.errors import StoreError
from flashslm.infra.storage.object_store import ObjectStore
from flashslm.infra.storage.tree import (
    MARKER,
    Manifest,
    disk_errors,
    holds_verified,
    locked,
    mark_verified,
    tree_digest,
)

_TEMPORARY = "."  # beginning of the names of what is not a whole file's directory
_FREE_ON_A_NODE = 0.2  # of its disk: with less than 0.15 left, kubelet removes pods, this one before others
_State = tuple[int, int, int, int]


class StreamedTree:
    """One tree, by the paths of its files. Processes of a machine, and trees, may share the cache.

    The cache never holds more than `max_bytes`, or than the disk has room for, what is being fetched included: the
    files that were not used for longest are removed first. In a pod a fifth of the node's disk stays free. A file that
    is open stays readable. It is verified when it comes, and again only where its size, inode or times have changed.
    """

    def __init__(self, store: ObjectStore, manifest: Manifest, cache: Path, max_bytes: int):
        """Reads the tree's index; raises as `ObjectStore.get_tree` does."""
        self._store, self._manifest, self._cache, self._max_bytes = store, manifest, cache, max_bytes
        self._index = store.index(manifest)
        self._verified: dict[str, _State] = {}  # in which state this process saw the file verified
        self._wanted: SimpleQueue[str] = SimpleQueue()
        self._awaited: set[str] = set()  # of the wanted ones, those that were not opened since
        self._fetcher: threading.Thread | None = None

    def __str__(self) -> str:
        return self._manifest.uri

    def size(self, name: str) -> int:
        """Bytes of a file, -1 if the tree has none of this path."""
        return self._index[name].bytes if name in self._index else -1

    def open(self, name: str) -> BinaryIO:
        """A file, fetched if it is not there. Raises KeyError for a path that the tree does not have, StoreError where
        the cache is too small for it, and as `ObjectStore.get_tree` does.
        """
        target = self._target(name)
        while True:
            with suppress(FileNotFoundError):  # not there yet, or removed by another process meanwhile
                opened = (target / name).open("rb")
                if self._verified.get(name) == _state(opened.fileno()):
                    with suppress(OSError):  # removed meanwhile, or of a cache that may only be read
                        os.utime(target / MARKER)  # the time of its last use
                    self._awaited.discard(name)
                    return opened
                opened.close()
            self._fetch(name)

    def fetch_ahead(self, name: str) -> None:
        """Have a file fetched meanwhile, unless it is there or is opened first. If that fails, `open` tries again."""
        if self._fetcher is None:
            self._fetcher = threading.Thread(target=self._fetch_wanted, name="fetch-ahead", daemon=True)
            self._fetcher.start()
        self._awaited.add(name)
        self._wanted.put(name)

    def _fetch_wanted(self) -> None:
        while True:
            name = self._wanted.get()
            if name in self._awaited:
                with suppress(Exception):  # whoever opens the file meets the same, and reports it
                    self._fetch(name)

    def _target(self, name: str) -> Path:
        """A directory that holds this file alone, as a tree of its own."""
        return self._cache / tree_digest({name: self._index[name]})

    def _fetch(self, name: str) -> None:
        target = self._target(name)
        if not _is_there(target):
            self._cache.mkdir(parents=True, exist_ok=True)
            with locked(self._cache):  # another process may have fetched it meanwhile
                if not _is_there(target):
                    _remove(target)
                    self._make_room(name)
                    self._download(name, target)
        with suppress(FileNotFoundError):
            self._verified[name] = _state(target / name)

    def _download(self, name: str, target: Path) -> None:
        with disk_errors(target), tempfile.TemporaryDirectory(prefix=_TEMPORARY, dir=self._cache) as temporary:
            tree = Path(temporary) / "tree"
            self._store.get_part(self._manifest, (name,), tree, {name: self._index[name]})
            mark_verified(tree, target.name)
            tree.rename(target)

    def _make_room(self, name: str) -> None:
        """Remove what was not used for longest; called under the lock, so that a temporary file has no owner."""
        needed = self._index[name].bytes
        if needed > self._max_bytes:
            raise StoreError(
                f"'{name}' of {self} has {needed:,} bytes, and the cache of data sets may hold {self._max_bytes:,}: "
                "raise platform.data_cache_bytes"
            )
        found = []
        for entry in self._cache.iterdir():
            if entry.name.startswith(_TEMPORARY):  # its owner was killed
                shutil.rmtree(entry, ignore_errors=True)
            else:
                found.append((_last_use_s(entry), entry, _bytes_below(entry)))
        total = sum(size for _, _, size in found)
        allowed = min(self._max_bytes, total + _free_bytes(self._cache))
        for _, entry, size in sorted(found):
            if total + needed <= allowed:
                return
            _remove(entry)
            total -= size


def _free_bytes(directory: Path) -> int:
    """What may be written there; negative where a node's disk is fuller than it should be."""
    disk = shutil.disk_usage(directory)
    return disk.free - (int(_FREE_ON_A_NODE * disk.total) if owners.pod_uid() else 0)


def _is_there(target: Path) -> bool:
    try:
        return holds_verified(target, target.name)
    except FileNotFoundError:  # another process removed it while it was looked at
        return False


def _remove(directory: Path) -> None:
    """Take a file's directory out of the cache at once, and then delete it."""
    removed = directory.with_name(f"{_TEMPORARY}{directory.name}.{uuid.uuid4().hex}")
    with suppress(FileNotFoundError):
        directory.rename(removed)
        shutil.rmtree(removed, ignore_errors=True)


def _last_use_s(directory: Path) -> float:
    marker = directory / MARKER
    return marker.stat().st_mtime if marker.is_file() else 0.0


def _bytes_below(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file() and file.name != MARKER)


def _state(file: Path | int) -> _State:
    found = os.stat(file)
    return found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns
