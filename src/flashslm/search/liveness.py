"""Which process a worker is, and whether it still runs; a recycled process id is not mistaken for it."""

import os
import socket
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psutil

START_TOLERANCE_S = 2.0  # start times are read against a clock that may be stepped


@dataclass(frozen=True)
class WorkerIdentity:
    """A process on a host; `host` tells apart reboots and process id namespaces (containers of one machine)."""

    host: str
    pid: int
    started_s: float

    def is_alive(self) -> bool:
        """Whether this very process runs, for a worker of the present host; a zombie does not."""
        try:
            process = psutil.Process(self.pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            return abs(float(process.create_time()) - self.started_s) < START_TOLERANCE_S
        except psutil.NoSuchProcess:
            return False

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def this_worker() -> WorkerIdentity:
    return WorkerIdentity(_host(), os.getpid(), psutil.Process().create_time())


@cache
def _host() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id")
    namespace = Path("/proc/self/ns/pid")
    parts = [socket.gethostname()]
    if boot.exists() and namespace.exists():
        parts += [boot.read_text(encoding="ascii").strip()[:8], os.readlink(namespace)]
    return "/".join(parts)
