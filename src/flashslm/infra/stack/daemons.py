"""Start, recognise and stop background processes that outlive the command that started them."""

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import psutil
from pydantic import BaseModel

from flashslm.infra.process.owners import is_running
from flashslm.infra.process.private import private_directory, private_files
from flashslm.infra.settings import FOREIGN_VARIABLES

_MARK = "FLASHSLM_DAEMON"  # in a daemon's environment and so in its children's: how leftovers are recognised
GRPC_OFFSET = 10_000
# with the offset still below 32768, where the kernel takes the ports of outgoing connections from; no two of them are
# one offset apart
_PORTS = range(12_000, 22_000)


class StackError(RuntimeError):
    """A daemon cannot be started or does not become healthy; the message holds the end of its log."""


class Daemon(BaseModel):
    """One background process; a pid is believed only with the start time it had."""

    mark: str
    pid: int
    started_s: float
    log: Path

    def is_alive(self) -> bool:
        """Whether this very process runs (not another with its recycled pid, not a zombie)."""
        return is_running(self.pid, self.started_s) and _is_marked(self.pid, self.mark)

    def log_tail(self, lines: int = 15) -> str:
        """The end of the log, for error messages."""
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.is_file() else ""
        return "\n".join(f"  | {line}" for line in text.splitlines()[-lines:])


def start(command: list[str], env: dict[str, str], mark: str, log: Path, directory: Path | None = None) -> Daemon:
    """Start a command in a session of its own, so that Ctrl-C of a run does not reach it; it works in `directory`."""
    private_directory(log.parent)
    with private_files(), log.open("ab") as output:
        process = subprocess.Popen(
            command,
            cwd=directory,
            env={k: v for k, v in os.environ.items() if not _is_foreign(k)} | env | {_MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    started_s = psutil.Process(process.pid).create_time()  # a zombie has one too: only we reap it
    while process.poll() is None and not _is_marked(
        process.pid, mark
    ):  # the kernel shows the environment a little late
        time.sleep(0.001)
    return Daemon(mark=mark, pid=process.pid, started_s=started_s, log=log)


def _is_foreign(variable: str) -> bool:
    """What a user's shell holds for other services; a daemon that took it would keep it for every later run."""
    return variable in FOREIGN_VARIABLES or variable.lower().endswith("_proxy")


def stop(mark: str, timeout_s: float = 10.0) -> None:
    """Stop every process that carries a mark: TERM, then KILL what is left."""
    running = marked(mark)
    for process in running:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGTERM)
    psutil.wait_procs(running, timeout=timeout_s)
    left = marked(mark)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=timeout_s)


def marked(mark: str) -> list[psutil.Process]:
    """The live processes that carry a mark, a killed daemon's orphaned workers included."""
    return [p for p in psutil.process_iter() if _is_marked(p.pid, mark)]


def wait_until(healthy: Callable[[], bool], daemon: Daemon, name: str, timeout_s: float) -> None:
    """Poll until a daemon is healthy; StackError when it ends or the time is over."""
    deadline = time.monotonic() + timeout_s
    while not healthy():
        if not daemon.is_alive():
            raise StackError(f"{name} ended while starting; the end of {daemon.log}:\n{daemon.log_tail()}")
        if time.monotonic() > deadline:
            raise StackError(
                f"{name} (pid {daemon.pid}) is not healthy after {timeout_s:.0f} s; the end of {daemon.log}:\n"
                f"{daemon.log_tail()}\nTry `flashslm stack down` and `flashslm stack up`"
            )
        time.sleep(0.1)


def free_ports(count: int) -> list[int]:
    """Ports without a listener, whose port + 10000 is free too."""
    candidates = random.SystemRandom().sample(_PORTS, len(_PORTS))
    free = (port for port in candidates if is_free(port) and is_free(port + GRPC_OFFSET))
    return [next(free) for _ in range(count)]


def not_freed(ports: Iterable[int], wait_s: float = 5.0) -> list[int]:
    """Those of `ports` that stay taken; one of a process that is just ending is free in a moment."""
    wanted, deadline_s = list(ports), time.monotonic() + wait_s
    while (taken := [port for port in wanted if not is_free(port)]) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    return taken


def is_free(port: int) -> bool:
    """Whether a loopback port can be listened on."""
    with socket.socket() as probe:
        # as servers do: connections of a stopped daemon that linger in TIME_WAIT do not block it
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def executable(name: str, extra: str) -> str:
    """The path of a program installed beside this Python or in PATH; StackError names the extra that brings it."""
    beside = Path(sys.executable).parent
    path = shutil.which(name, path=os.pathsep.join([str(beside), os.environ.get("PATH", "")]))
    if path is None:
        raise StackError(f"program '{name}' is neither in {beside} nor in PATH: pip install 'flashslm[{extra}]'")
    return path


def _is_marked(pid: int, mark: str) -> bool:
    try:
        return bool(psutil.Process(pid).environ().get(_MARK) == mark)
    except (psutil.Error, OSError):  # another user's, or gone
        return False
