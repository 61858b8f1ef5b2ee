"""Compiled kernels and the winners of their tuning travel through the object store, for every GPU and set of versions.

A pod starts with an empty disk: without this object each step would compile and tune every kernel again, minutes in
which the GPU idles. The object is one archive behind the pointer `kernels/<key>.json`. It only ever saves time: where
the store does not answer, or an archive is corrupt, the step says so and tunes for itself.
"""

import json
import logging
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flashslm.infra.storage.object_store import Manifest, ObjectStore, PreconditionFailed
from flashslm.infra.storage.s3 import StoreError
from flashslm.ops.kernel_cache import cache_directory, cache_facts, cache_key

ARCHIVE, FACTS = "kernels.tar.gz", "facts.json"
# What Triton wrote on the way to a binary. It loads the binary alone, and these are seven tenths of the bytes.
INTERMEDIATE = (".ttir", ".ttgir", ".llir", ".ptx", ".source")
UNFINISHED = (".partial", ".lock", ".tmp")
ATTEMPTS = 3  # another pod may store its kernels at the same time
_log = logging.getLogger(__name__)


@contextmanager
def shared_kernels(store: ObjectStore, stores: bool = True) -> Iterator[None]:
    """Fetch what is known for this machine before the block; if it `stores`, store what the block has added.

    What a failed block has added is stored too.
    """
    if not cache_facts()["gpu"]:
        yield
        return
    known = _quietly("fetched", fetch_kernels, store) or set()
    try:
        yield
    finally:
        if stores and _files() - known:
            _quietly("stored", store_kernels, store)


def fetch_kernels(store: ObjectStore) -> set[str]:
    """Unpack the object into this machine's cache; files that are already there stay. Returns the object's files."""
    found = store.get_json(_pointer())
    return set() if found is None else _unpack(store, Manifest.model_validate(found[0]))


def store_kernels(store: ObjectStore) -> set[str]:
    """Store this machine's cache, joined with what others have stored meanwhile. Returns the object's files."""
    for _ in range(ATTEMPTS):
        found = store.get_json(_pointer())
        if found is not None:
            _unpack(store, Manifest.model_validate(found[0]))
        files = _files()
        value = _pack(store, files).model_dump(mode="json")
        try:
            if found is None:
                store.put_json(_pointer(), value, if_absent=True)
            else:
                store.put_json(_pointer(), value, if_match=found[1])
        except PreconditionFailed:
            continue
        return files
    raise StoreError(f"{_pointer()} changed {ATTEMPTS} times while kernels were being stored: store them again")


def _pack(store: ObjectStore, files: set[str]) -> Manifest:
    root = cache_directory()
    with tempfile.TemporaryDirectory(prefix="flashslm-kernels-") as name:
        with tarfile.open(Path(name) / ARCHIVE, "w:gz", compresslevel=1) as archive:
            for file in sorted(files):
                archive.add(root / file, file)
        facts = {"root": str(root), "files": sorted(files), **cache_facts()}
        (Path(name) / FACTS).write_text(json.dumps(facts, indent=1), encoding="utf-8")
        return store.put_tree(name, "kernels", {"key": cache_key(), "files": len(files)})


def _unpack(store: ObjectStore, manifest: Manifest) -> set[str]:
    root = cache_directory()
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="flashslm-kernels-") as name:
        tree = store.get_tree(manifest, Path(name) / "tree")
        facts = json.loads((tree / FACTS).read_text(encoding="utf-8"))
        with tarfile.open(tree / ARCHIVE) as archive:
            missing = [member for member in archive if not (root / member.name).exists()]
            archive.extractall(root, missing, filter="data")
    if facts["root"] != str(root):
        _move_paths([root / member.name for member in missing], facts["root"], str(root))
    return set(facts["files"])


def _move_paths(files: list[Path], before: str, now: str) -> None:
    """Triton's lists of a kernel's files hold absolute paths."""
    for file in files:
        if file.name.startswith("__grp__"):
            file.write_text(file.read_text(encoding="utf-8").replace(before, now), encoding="utf-8")


def _files() -> set[str]:
    """Whole files of the cache that a later process reads; one that was killed may have left others."""
    root = cache_directory()
    paths = (path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    return {str(p.relative_to(root)) for p in paths if not p.name.endswith(INTERMEDIATE + UNFINISHED)}


def _pointer() -> str:
    return f"kernels/{cache_key()}.json"


def _quietly(what: str, action: object, store: ObjectStore) -> set[str] | None:
    try:
        files: set[str] = action(store)  # type: ignore[operator]
    except (StoreError, ValueError, OSError, tarfile.TarError) as error:
        _log.warning("compiled kernels were not %s: %s", what, error)
        return None
    _log.info("compiled kernels %s: %d files", what, len(files))
    return files
