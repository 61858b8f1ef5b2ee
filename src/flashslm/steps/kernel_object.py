"""Compiled kernels and the winners of their tuning travel through the object store, for every GPU and set of versions.

A pod starts with an empty disk: without this object each step would compile and tune every kernel again, minutes in
which the GPU idles. The object is archives behind the pointer `kernels/<key>.json`: trees, each with what a step has
added to those before it. It only ever saves time: where the store does not answer, or an archive is corrupt, the step
says so and tunes for itself.
"""

import gzip
import io
import json
import logging
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from flashslm.hardware import usable_cores
from flashslm.infra.state_files import locked_file, write_whole
from flashslm.infra.storage.errors import ObjectCorrupt, ObjectMissing, PreconditionFailed, StoreError
from flashslm.infra.storage.object_store import Manifest, ObjectStore
from flashslm.ops.kernel_cache import cache_directory, cache_facts, cache_key

ARCHIVE, FACTS = "kernels.tar.gz", "facts.json"  # a large cache has further ones, whose names end like the first's
ARCHIVE_BYTES = 8 << 20  # of files; compressing them one after the other would take seconds after each step
# What Triton wrote on the way to a binary. It loads the binary alone, and these are seven tenths of the bytes.
INTERMEDIATE = (".ttir", ".ttgir", ".llir", ".ptx", ".source")
UNFINISHED = (".partial", ".lock", ".tmp", ".new")
UNFINISHED_DIRECTORY = "tmp.pid_"  # begins the name of one in which Triton writes a file
UNPACKED, UNPACKING = "unpacked.json", "unpacking.lock"  # in the cache: which object it holds; held while it gets one
# Of an object that is gone, damaged, or of another form.
UNREADABLE = (ObjectMissing, ObjectCorrupt, ValueError, KeyError, EOFError, zlib.error, tarfile.TarError)
ATTEMPTS = 3  # another pod may store its kernels at the same time
MAX_TREES = 16  # of an object; the next step to store something makes one tree of them
OLDER = "older"  # in the metadata of the last tree's manifest, which is the pointer: the manifests of those before it
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


@contextmanager
def required_kernels(store: ObjectStore) -> Iterator[None]:
    """`shared_kernels` for a block that is there to fill the object: at its end all of this machine's kernels are
    stored.

    Raises ValueError, before the block, where the GPU is not known, and StoreError, after it, for kernels that could
    not be stored.
    """
    if not cache_facts()["gpu"]:
        raise ValueError("nvidia-smi does not name a GPU, and kernels are stored by its name and driver: install it")
    with shared_kernels(store, stores=False):
        try:
            yield
        except BaseException:
            _quietly("stored", store_kernels, store)
            raise
    try:
        store_kernels(store)
    except (StoreError, OSError) as error:
        raise StoreError(
            f"compiled kernels were not stored: {error}; {len(_files())} files of them are in {cache_directory()} on "
            "this machine alone: the same command stores them without compiling them again"
        ) from error


def fetch_kernels(store: ObjectStore) -> set[str]:
    """Unpack the object into this machine's cache; files that are already there stay. Returns the object's files.

    An object that an earlier step unpacked here is not read again, unless a file of it was removed since.
    """
    found = store.get_json(_pointer())
    return set() if found is None else _unpack(store, _trees(Manifest.model_validate(found[0])))


def store_kernels(store: ObjectStore) -> set[str]:
    """Store those files of this machine's cache that the object does not have. Returns the object's files.

    What cannot be read is replaced.
    """
    for _ in range(ATTEMPTS):
        found = store.get_bytes(_pointer())
        older, known = _readable(store, found[0]) if found else ([], set())
        files = _files()
        if known >= files:
            return known
        if len(older) >= MAX_TREES:
            older, known = [], set()
        manifest = _pack(store, files - known, older)
        try:
            if found is None:
                store.put_json(_pointer(), manifest.model_dump(mode="json"), if_absent=True)
            else:
                store.put_json(_pointer(), manifest.model_dump(mode="json"), if_match=found[1])
        except PreconditionFailed:
            continue
        _note_unpacked([*older, manifest], known | files)
        return known | files
    raise StoreError(f"{_pointer()} changed {ATTEMPTS} times while kernels were being stored: store them again")


def _trees(pointer: Manifest) -> list[Manifest]:
    """The object's trees, the first one first, each without a list of the others."""
    older = [Manifest.model_validate(tree) for tree in pointer.metadata.get(OLDER, ())]
    metadata = {name: value for name, value in pointer.metadata.items() if name != OLDER}
    return [*older, pointer.model_copy(update={"metadata": metadata})]


def _readable(store: ObjectStore, pointer: bytes) -> tuple[list[Manifest], set[str]]:
    """The trees and the files of the object behind a pointer, unpacked; none, after a warning, where pointer or object
    are damaged or gone.
    """
    try:
        trees = _trees(Manifest.model_validate_json(pointer))
        return trees, _unpack(store, trees)
    except UNREADABLE as error:
        _log.warning("the stored kernels are replaced: %s", error)
        return [], set()


def _pack(store: ObjectStore, files: set[str], older: list[Manifest]) -> Manifest:
    root = cache_directory()
    with tempfile.TemporaryDirectory(prefix="flashslm-kernels-") as name:

        def write(numbered: tuple[int, list[str]]) -> None:
            number, part = numbered
            whole = io.BytesIO()  # compressed by one call, which leaves the interpreter to other threads
            with tarfile.open(fileobj=whole, mode="w") as archive:
                for file in part:
                    archive.add(root / file, file)
            (Path(name) / _archive_name(number)).write_bytes(gzip.compress(whole.getbuffer(), 1, mtime=0))

        with ThreadPoolExecutor(usable_cores()) as pool:
            list(pool.map(write, enumerate(_parts(root, files))))
        facts = {"root": str(root), "files": sorted(files), **cache_facts()}
        (Path(name) / FACTS).write_text(json.dumps(facts, indent=1), encoding="utf-8")
        before = [tree.model_dump(mode="json") for tree in older]
        return store.put_tree(name, "kernels", {"key": cache_key(), "files": len(files), OLDER: before})


def _archive_name(number: int) -> str:
    return f"{number}-{ARCHIVE}" if number else ARCHIVE


def _parts(root: Path, files: set[str]) -> list[list[str]]:
    """One archive's files each, at least one of them."""
    parts, size = [list[str]()], 0
    for file in sorted(files):
        if size >= ARCHIVE_BYTES:
            parts.append([])
            size = 0
        parts[-1].append(file)
        size += (root / file).stat().st_size
    return parts


def _unpack(store: ObjectStore, trees: list[Manifest]) -> set[str]:
    """The files of all trees, in the cache; those that an earlier step unpacked are not read again."""
    root = cache_directory()
    root.mkdir(parents=True, exist_ok=True)
    with locked_file(root / UNPACKING):  # of several processes that start together one does it
        before, files = _unpacked_before(trees)
        for tree in trees[before:]:
            files |= _unpack_tree(store, tree, root)
        if before < len(trees):
            _note_unpacked(trees, files)
    return files


def _unpack_tree(store: ObjectStore, manifest: Manifest, root: Path) -> set[str]:
    with tempfile.TemporaryDirectory(prefix="flashslm-kernels-") as name:
        tree = store.get_tree(manifest, Path(name) / "tree")
        facts = json.loads((tree / FACTS).read_text(encoding="utf-8"))
        with ThreadPoolExecutor(usable_cores()) as pool:
            list(pool.map(lambda archive: _extract(archive, root, facts["root"]), tree.glob(f"*{ARCHIVE}")))
    return set(facts["files"])


def _extract(archive_file: Path, root: Path, root_before: str) -> None:
    """Add the archive's files to the cache, each of them whole: a killed process leaves no half of one."""
    with tempfile.TemporaryDirectory(prefix="new-", suffix=".tmp", dir=root.parent) as name:
        with tarfile.open(archive_file) as archive:
            missing = [member for member in archive if not (root / member.name).exists()]
            archive.extractall(name, missing, filter="data")
        for member in missing:
            file = Path(name) / member.name
            _move_paths(file, root_before, str(root))
            (root / member.name).parent.mkdir(parents=True, exist_ok=True)
            file.replace(root / member.name)


def _move_paths(file: Path, before: str, now: str) -> None:
    """Triton's lists of a kernel's files hold absolute paths."""
    if file.name.startswith("__grp__") and before != now:
        file.write_text(file.read_text(encoding="utf-8").replace(before, now), encoding="utf-8")


def _unpacked_before(trees: list[Manifest]) -> tuple[int, set[str]]:
    """How many of the trees, from the first, this cache has had since an earlier step, and their files.

    None where one of the files was removed since, or where trees were replaced.
    """
    root = cache_directory()
    try:
        noted = json.loads((root / UNPACKED).read_text(encoding="utf-8"))
        had, files = list(noted["trees"]), set(noted["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0, set()
    is_same = had == [tree.sha256 for tree in trees[: len(had)]]
    return (len(had), files) if is_same and all((root / file).exists() for file in files) else (0, set())


def _note_unpacked(trees: list[Manifest], files: set[str]) -> None:
    noted = {"trees": [tree.sha256 for tree in trees], "files": sorted(files)}
    write_whole(cache_directory() / UNPACKED, json.dumps(noted))


def _files() -> set[str]:
    """Whole files of the cache that a later process reads; one that was killed may have left others."""
    root = cache_directory()
    paths = (path.relative_to(root) for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    return {str(path) for path in paths if _is_kept(path)}


def _is_kept(path: Path) -> bool:
    if path.name.endswith(INTERMEDIATE + UNFINISHED) or path == Path(UNPACKED):
        return False
    return not any(part.startswith(UNFINISHED_DIRECTORY) for part in path.parts)


def _pointer() -> str:
    return f"kernels/{cache_key()}.json"


def _quietly(what: str, action: object, store: ObjectStore) -> set[str] | None:
    try:
        files: set[str] = action(store)  # type: ignore[operator]
    except (StoreError, OSError, *UNREADABLE) as error:
        _log.warning("compiled kernels were not %s: %s", what, error)
        return None
    _log.info("compiled kernels %s: %d files", what, len(files))
    return files
