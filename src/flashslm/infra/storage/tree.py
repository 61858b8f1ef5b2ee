"""Directories as content: the digest of a tree of files, its manifest, and how a directory receives one."""

import errno
import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from flashslm.infra.state_files import write_whole
from flashslm.infra.storage.errors import StoreError

CAS = "cas/"
MARKER = ".flashslm-tree"  # in a downloaded directory: the tree's digest and the state in which it was verified
_FILES_AT_ONCE = 4
Item = TypeVar("Item")
Returned = TypeVar("Returned")


class Manifest(BaseModel):
    """The identity of a stored tree: what a pipeline artifact file holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str
    uri: str = Field(pattern=r"^s3://[^/]+/.+")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)
    metadata: dict[str, Any] = {}

    def write(self, path: str | Path, origins: "Origins | None" = None) -> Path:
        """Write an artifact's file: the manifest, and what the tree was made of. Parents are made."""
        file = Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        content = ArtifactFile(**dict(self), origins=origins or Origins())
        write_whole(file, content.model_dump_json(indent=1))
        return file

    @classmethod
    def at(cls, uri: str, kind: str) -> "Manifest":
        """The tree at an address, s3://BUCKET/cas/AB/SHA256; its size is not known (0)."""
        return cls(kind=kind, uri=uri, sha256=uri.rpartition("/")[2], bytes=0)

    @classmethod
    def read(cls, path: str | Path) -> "Manifest":
        """The manifest of an artifact's file."""
        return ArtifactFile.model_validate_json(Path(path).read_bytes()).manifest


class Origins(BaseModel):
    """What a tree was made of: manifests by the names of the artifacts, and sections of the recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    manifests: dict[str, Manifest] = {}
    sections: dict[str, Any] = {}

    def __or__(self, other: "Origins") -> "Origins":
        """Both; the other's where they have the same name."""
        return Origins(manifests=self.manifests | other.manifests, sections=self.sections | other.sections)


class ArtifactFile(Manifest):
    """What the file of a pipeline artifact holds, so that one input of a step brings all that it was made of."""

    origins: Origins = Origins()

    @property
    def manifest(self) -> Manifest:
        return Manifest(**{name: value for name, value in self if name != "origins"})


class ObjectEntry(NamedTuple):
    """What a listing says of an object."""

    bytes: int
    modified_s: float  # POSIX time


class UnsafeTree(ValueError):
    """A tree would hold, or reach, something else than files inside its own directory."""


class FileEntry(BaseModel):
    """One file of a tree."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


TreeIndex = dict[str, FileEntry]  # by the path in the tree


class HashingSink:
    """Hashes what is written to it and passes it on. Not seekable, so that ranges arrive in order."""

    def __init__(self, file: IO[bytes] | None = None):
        self.hash = hashlib.sha256()
        self.file = file

    def write(self, data: bytes) -> int:
        self.hash.update(data)
        return self.file.write(data) if self.file else len(data)


class _Index(BaseModel):
    files: dict[str, FileEntry] = Field(min_length=1)


def tree_digest(files: TreeIndex) -> str:
    """The sha256 over the sorted lines "sha256  path"."""
    return hashlib.sha256("".join(sorted(f"{f.sha256}  {path}\n" for path, f in files.items())).encode()).hexdigest()


def tree_prefix(digest: str) -> str:
    """Where the files of a tree are in the store."""
    return f"{CAS}{digest[:2]}/{digest}"


def index_key_of(prefix: str) -> str:
    """The object that holds a tree's index."""
    return f"{prefix}.index.json"


def index_of(files: TreeIndex) -> dict[str, Any]:
    """What `read_index` reads."""
    return {"files": {path: entry.model_dump() for path, entry in files.items()}}


def hash_tree(directory: Path) -> TreeIndex:
    """Every file below a directory by its relative path; the download marker does not count.

    Raises UnsafeTree for a link, for what is neither file nor directory, and for a name that no tree may hold.
    """
    paths = sorted(path for path in _files_below(directory) if path != directory / MARKER)
    names = [path.relative_to(directory).as_posix() for path in paths]
    for name in names:
        check_path(name)
    return dict(zip(names, in_parallel(_hash_file, paths), strict=True))


def _files_below(directory: Path) -> Iterator[Path]:
    """Regular files alone; a pipe would be waited for without end, and a link leads to files outside the tree."""
    for entry in directory.iterdir():
        mode = entry.lstat().st_mode
        if stat.S_ISDIR(mode):
            yield from _files_below(entry)
        elif stat.S_ISREG(mode):
            yield entry
        else:
            kind = "a link" if stat.S_ISLNK(mode) else "neither a file nor a directory"
            raise UnsafeTree(
                f"'{entry}' is {kind}: a tree holds regular files only; `cp -rL` copies what links lead to"
            )


def check_path(path: str) -> None:
    """Raise UnsafeTree unless a path of a tree stays inside the directory that it is joined to."""
    if not path or "\0" in path or "\\" in path or any(part in ("", ".", "..") for part in path.split("/")):
        raise UnsafeTree(f"a tree cannot hold the path {path!r}: relative paths without '..', '.' and '\\' are allowed")
    if path == MARKER:
        raise UnsafeTree(f"a tree cannot hold the path {path!r}: it is the mark of a downloaded directory")


def read_index(value: Any) -> TreeIndex:
    """The files that a tree's index names. Raises ValueError for what is not an index, UnsafeTree for a path that
    leaves the tree's directory.
    """
    files = _Index.model_validate(value).files
    for path in files:
        check_path(path)
        if inside := next((str(parent) for parent in PurePosixPath(path).parents if str(parent) in files), ""):
            raise UnsafeTree(f"a tree cannot hold the file {path!r} inside the file {inside!r}")
    return files


def in_parallel(function: Callable[[Item], Returned], items: Iterable[Item]) -> list[Returned]:
    """Results in order; the first failure drops what has not begun."""
    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        try:
            return list(pool.map(function, items))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _hash_file(path: Path) -> FileEntry:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileEntry(sha256=digest, bytes=file.tell())


def holds(directory: Path, digest: str) -> bool:
    """Whether a directory was filled with this tree and still holds exactly its bytes; reads all of them."""
    if _marked(directory)[:1] != [digest]:
        return False
    try:
        return tree_digest(hash_tree(directory)) == digest
    except UnsafeTree:  # there is a link now
        return False


def holds_verified(directory: Path, digest: str) -> bool:
    """`holds`, which reads the bytes only where a file has changed in any way since they were verified.

    A file counts as unchanged while its size, inode and times are the same; the time of change (ctime) cannot be set.
    What a disk loses silently is found by `holds` alone.
    """
    marked = _marked(directory)
    try:
        if marked[:1] == [digest] and marked[1:] == [_state(directory)]:
            return True
    except UnsafeTree:
        return False
    if not holds(directory, digest):
        return False
    with suppress(OSError):  # of a directory that may only be read
        mark_verified(directory, digest)
    return True


def mark_verified(directory: Path, digest: str) -> None:
    """Note that the files are those of this tree as they are now."""
    with tempfile.TemporaryDirectory(prefix=f".{directory.name}.", dir=directory.parent) as outside:
        marker = Path(outside) / MARKER
        marker.write_text(f"{digest}\n{_state(directory)}\n", encoding="utf-8")
        marker.replace(directory / MARKER)


def _marked(directory: Path) -> list[str]:
    marker = directory / MARKER
    return marker.read_text(encoding="utf-8", errors="replace").split() if marker.is_file() else []


def _state(directory: Path) -> str:
    """A digest of every file's path, size, inode and times."""
    found = []
    for path in sorted(path for path in _files_below(directory) if path != directory / MARKER):
        state = path.lstat()
        facts = state.st_size, state.st_ino, state.st_mtime_ns, state.st_ctime_ns
        found.append(f"{path.relative_to(directory).as_posix()} {facts}\n")
    return hashlib.sha256("".join(found).encode("utf-8", "surrogateescape")).hexdigest()


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """One process (or thread) at a time; leaves no file behind, and the kernel frees it if its holder dies."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def disk_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(target.parent).free
        raise StoreError(
            f"disk full while writing '{target}' ({free:,} bytes free): nothing was kept; free some space"
        ) from error
