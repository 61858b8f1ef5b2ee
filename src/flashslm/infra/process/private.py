"""Files of the owner alone, whatever the umask: the home holds keys, and a run holds data and weights."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PRIVATE_UMASK = 0o077


@contextmanager
def private_files() -> Iterator[None]:
    """What this process and its children make meanwhile has the modes 0700 and 0600."""
    before = os.umask(PRIVATE_UMASK)
    try:
        yield
    finally:
        os.umask(before)


def private_directory(directory: Path) -> Path:
    """Make a directory (mode 0700), or take its group's and everybody's rights from one that is the user's own."""
    with private_files():
        directory.mkdir(parents=True, exist_ok=True)
    found = directory.stat()
    if found.st_mode & PRIVATE_UMASK and found.st_uid == os.getuid():
        directory.chmod(found.st_mode & 0o700)
    return directory
