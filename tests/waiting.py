"""Waiting for what another process or thread does, and looking at it meanwhile."""

import os
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil


def wait_until(condition: Callable[[], object], timeout_s: float = 300.0) -> None:
    """Return as soon as the condition holds; a test fails where it has not come true in time.

    A process that imports PyTorch or starts a service takes half a minute where others keep all processors busy.
    """
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"the awaited state did not come within {timeout_s:g} s"
        time.sleep(0.02)


def has_ended(process: psutil.Process) -> bool:
    """Whether it runs no more; it may end while it is looked at, and may not have been reaped yet.

    A killed process is a zombie as soon as its first thread has ended: the others hold its ports and files until then.
    """
    try:
        is_zombie = process.is_running() and process.status() == psutil.STATUS_ZOMBIE
        return not process.is_running() or (is_zombie and len(os.listdir(f"/proc/{process.pid}/task")) == 1)
    except (psutil.NoSuchProcess, FileNotFoundError):
        return True


def modes(root: Path) -> dict[Path, int]:
    """The mode of everything at and below `root`, links aside; what services remove meanwhile is left out."""
    found = {}
    for path in (root, *(Path(place, name) for place, below, files in os.walk(root) for name in (*below, *files))):
        with suppress(FileNotFoundError):
            if not stat.S_ISLNK(mode := path.lstat().st_mode):
                found[path] = stat.S_IMODE(mode)
    return found


def whole_lines(file: Path) -> list[str]:
    """The lines that other processes have written; one that is being written shows its beginning alone."""
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    return text[: text.rfind("\n") + 1].splitlines()
