"""Which process owns a run or a trial, and whether it still lives."""

import os
import socket
from pathlib import Path

import psutil

POD_UID = "FLASHSLM_POD_UID"  # in pods that KFP does not make, such as those of a TrainJob
_START_TOLERANCE_S = 2.0  # psutil derives start times from the boot time, which clock adjustments move a little


def pod_uid() -> str:
    """The UID of the pod that this process runs in; empty outside a cluster."""
    return os.environ.get("KFP_POD_UID") or os.environ.get(POD_UID, "")


def machine() -> str:
    """Where this process runs: its pod, or the host and, since a container counts pids from 1, its pid namespace.

    A pod's host name does not identify it: Kubernetes cuts it to 63 characters, which are equal for all steps of a run.
    """
    if uid := pod_uid():
        return f"{os.environ.get('KFP_POD_NAME') or socket.gethostname()}/{uid}"
    namespace = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()}/{os.readlink(namespace) if namespace.exists() else ''}"


def owner() -> str:
    """This process as "machine pid start-time"."""
    return f"{machine()} {os.getpid()} {psutil.Process().create_time()}"


def is_local(owner: str) -> bool:
    """Whether an owner is a process of this machine: of others nothing is known."""
    return owner.rsplit(" ", 2)[0] == machine()


def is_gone(owner: str) -> bool:
    """Whether an owner was a process of this machine and runs no more."""
    _, pid, started_s = owner.rsplit(" ", 2)
    return is_local(owner) and not is_running(int(pid), float(started_s))


def is_running(pid: int, started_s: float) -> bool:
    """Whether a pid is the process that started at that time (not its recycled pid, not a zombie)."""
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - started_s) < _START_TOLERANCE_S
        return bool(same and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
