"""State on the local disk: written whole, and set aside when it is found damaged so that the next command continues."""

import contextlib
import fcntl
import logging
import os
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TypeVar

Value = TypeVar("Value")
SQLITE_COMPANIONS = ("-journal", "-wal", "-shm")
_log = logging.getLogger(__name__)


def require_writable(file: Path) -> Path:
    """The file, where it can be written later, with directories that are missing: known before the work that it keeps.

    ValueError says why it cannot be.
    """
    if file.is_dir():
        raise ValueError(f"{file} is a directory: give a file, such as {file / 'result.json'}")
    if file.exists() and not file.is_file():
        raise ValueError(f"{file} is a device or a pipe: give a file that can be replaced")
    if file.exists() and not os.access(file, os.W_OK):
        raise ValueError(f"{file} is not writable: give another path, or change its permissions")
    require_writable_directory(file.parent)
    return file


def require_writable_directory(directory: Path) -> Path:
    """The directory, where it can be made, or files can be made in it. ValueError says why not."""
    found = next(place for place in (directory, *directory.absolute().parents) if place.exists())
    if not found.is_dir():
        raise ValueError(f"{found} is a file, so nothing can lie below it: give another path")
    if not os.access(found, os.W_OK | os.X_OK):
        raise ValueError(f"{found} is not writable: give another path, or change its permissions")
    return directory


def write_whole(file: Path, content: str | bytes) -> None:
    """Replace a file (mode 0600) so that a reader, or a crash at any moment, finds the old content or the new one."""
    data = content.encode() if isinstance(content, str) else content
    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}.new")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(data)
            opened.flush()
            os.fsync(opened.fileno())
        temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(file.parent)


def append_line(file: Path, line: str) -> None:
    """Add a line in one write and wait for the disk; a line that a killed writer left unfinished stays apart.

    The lock keeps a writer from seeing another's line half written, which the kernel shows page by page.
    """
    with file.open("a+b") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        end = opened.seek(0, os.SEEK_END)
        opened.seek(max(0, end - 1))
        is_cut = end > 0 and opened.read(1) != b"\n"
        opened.write((b"\n" if is_cut else b"") + line.encode() + b"\n")
        opened.flush()
        os.fsync(opened.fileno())


def sync_directory(directory: Path) -> None:
    """Wait until the names in a directory are on the disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems cannot
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_state(file: Path, parse: Callable[[bytes], Value]) -> Value | None:
    """What `parse` makes of a file, or None if there is none; one that `parse` refuses (ValueError) is set aside."""
    if not file.is_file():
        if file.exists() or file.is_symlink():
            set_aside(file, "it is not a file")
        return None
    try:
        return parse(file.read_bytes())
    except ValueError as error:
        set_aside(file, " ".join(str(error).split())[:200])
        return None


def set_aside(path: Path, reason: str) -> Path | None:
    """Rename what is damaged to `<name>.damaged-<id>` and say so; None if another process did it first."""
    target = path.with_name(f"{path.name}.damaged-{uuid.uuid4().hex[:8]}")
    try:
        path.rename(target)
    except FileNotFoundError:
        return None
    _log.warning("%s is damaged (%s): it is kept as %s, and work continues without it", path, reason, target.name)
    return target


def check_sqlite(file: Path) -> None:
    """Set an SQLite database aside, with its journals, if it cannot be read through. Its users must not be running."""
    if file.exists() and (problem := sqlite_problem(file)) and (kept := set_aside(file, problem)):
        for suffix in SQLITE_COMPANIONS:
            companion = file.with_name(file.name + suffix)
            if companion.exists():
                companion.rename(kept.with_name(kept.name + suffix))


def sqlite_problem(file: Path) -> str:
    """What is wrong with a database; an empty text for a good one, for none, and for one that is locked."""
    if not file.is_file():
        return "it is not a file" if file.exists() else ""
    try:
        with contextlib.closing(sqlite3.connect(file, timeout=10.0)) as connection:
            found = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
    except sqlite3.OperationalError:
        return ""  # locked, or no permission: no sign of damage
    except sqlite3.DatabaseError as error:
        return str(error)
    return "" if found == "ok" else found


@contextmanager
def locked_file(path: Path, flags: int = fcntl.LOCK_EX) -> Iterator[IO[str]]:
    """Hold a lock file, which the kernel frees if its holder dies; its content decides nothing.

    Raises BlockingIOError if another process holds it and `flags` has LOCK_NB.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if (path.exists() or path.is_symlink()) and not path.is_file():
        set_aside(path, "a lock must be a file")
    with path.open("a+", encoding="utf-8", errors="replace") as file:
        fcntl.flock(file, flags)
        yield file
