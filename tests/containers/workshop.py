"""A directory for gigabytes and for the name of what else a run makes; all of it is gone after the run.

A run that was killed leaves its directory, which is unlocked then: the next run removes it.
"""

import fcntl
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flashslm.infra.stack import embedded_stack

_PREFIX = "flashslm-containers-"
STACK = "stack"  # the embedded stack's home in it


def name_of(directory: Path) -> str:
    """A network interface's name, of 15 characters at most."""
    return "slm-" + directory.name.removeprefix(_PREFIX)


@contextmanager
def workshop() -> Iterator[Path]:
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with _held(left) as free:
            if free:
                _remove(left)
    directory = Path(tempfile.mkdtemp(prefix=_PREFIX))
    directory.chmod(0o755)  # steps, another user, go through it
    with _held(directory):
        try:
            yield directory
        finally:
            _remove(directory)


@contextmanager
def _held(directory: Path) -> Iterator[bool]:
    """Whether no other run holds it; if so, this one does. The kernel frees it with its holder."""
    with (directory / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _remove(directory: Path) -> None:
    """Remove a run's services, bridge, cgroups and files; its engine has ended."""
    name = name_of(directory)
    embedded_stack.down(directory / STACK)
    if shutil.which("ip"):
        subprocess.run(["ip", "link", "delete", name], capture_output=True, check=False)
    cgroups = ["find", "/sys/fs/cgroup", "-depth", "-type", "d", "-path", f"*/{name}*"]
    subprocess.run([*cgroups, "-exec", "rmdir", "{}", ";"], check=False)
    subprocess.run(["rm", "-rf", directory], check=False)  # three times as fast as shutil.rmtree
