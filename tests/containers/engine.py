"""A container engine of the test's own: dockerd from Debian's packages, which shares nothing with another one here."""

import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

NEEDS = {"docker": "docker.io", "dockerd": "docker.io", "debootstrap": "debootstrap", "ip": "iproute2"}
DISK_BYTES = 12e9
_READY_S = 60.0
# Debian's client goes first: its builder copies between stages six times faster than the classic one, and a newer
# client that stands before it would need a plug-in for that.
_PATH = f"/usr/bin:{os.environ['PATH']}:/usr/sbin:/sbin"
# dockerd takes a containerd that listens here for its own.
_START = 'mkdir -p /run/containerd && mount -t tmpfs tmpfs /run/containerd && exec dockerd "$@"'


class NoEngine(RuntimeError):
    """This machine cannot run containers; the message says what it lacks."""


@dataclass
class Engine:
    """A running dockerd; `env` leads the client to it."""

    directory: Path
    process: subprocess.Popen[bytes]

    @property
    def env(self) -> dict[str, str]:
        host = f"unix://{self.directory}/docker.sock"
        return os.environ | {"DOCKER_HOST": host, "DOCKER_BUILDKIT": "1", "PATH": _PATH}

    def call(self, *arguments: str, check: bool = True, timeout_s: float = 900) -> subprocess.CompletedProcess[str]:
        """`docker ARGUMENTS`; its output is part of the error when it fails and `check` is set."""
        done = subprocess.run(
            ["docker", *arguments], env=self.env, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        if check and done.returncode:
            output = (done.stdout + done.stderr)[-4000:]
            raise RuntimeError(f"docker {arguments[0]} ended with {done.returncode}:\n{output}")
        return done

    def output(self, *arguments: str) -> str:
        return self.call(*arguments).stdout.strip()

    def stop(self) -> None:
        """End the engine and, with its namespaces, its containers and mounts; nothing of it is used again."""
        pid = self.process.pid
        if self.process.poll() is None:
            for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
                os.kill(int(child), signal.SIGKILL)  # the first of its namespace: the kernel ends the others before it
        self.process.wait(timeout=60)


def alone(*command: str) -> list[str]:
    """The command in mount and process namespaces of its own.

    What it mounts, and what it leaves running, is gone when it ends; it ends at the latest with this process.
    """
    unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    return ["setpriv", "--pdeathsig", "KILL", *unshare, *command]


def check_machine() -> None:
    """Raises NoEngine where an engine cannot be started."""
    if os.geteuid():
        raise NoEngine("containers need root: dockerd and debootstrap refuse other users; run this with sudo")
    if missing := sorted({package for command, package in NEEDS.items() if not shutil.which(command, path=_PATH)}):
        raise NoEngine(f"not installed, of Debian's or Ubuntu's packages: {' '.join(missing)}")
    tried = subprocess.run(alone("mount", "-t", "tmpfs", "tmpfs", "/mnt"), capture_output=True, text=True, check=False)
    if tried.returncode:
        raise NoEngine(f"root may not make namespaces and mount in them, as containers need: {tried.stderr.strip()}")


def check_disk(directory: Path) -> None:
    """Raises NoEngine where the images find no room."""
    if (free_bytes := shutil.disk_usage(directory).free) < DISK_BYTES:
        found = f"{directory} has {free_bytes / 1e9:.1f} of the {DISK_BYTES / 1e9:.0f} GB that images and wheels need"
        raise NoEngine(f"{found}: set TMPDIR to a directory with room")


def start(directory: Path, name: str) -> Engine:
    """Start dockerd with its images and sockets below `directory`; `name` is that of its cgroup and bridge.

    Raises NoEngine with the end of its log.
    """
    directory.mkdir()
    log = directory / "dockerd.log"
    bridge = subprocess.run(["ip", "link", "add", name, "type", "bridge"], capture_output=True, text=True, check=False)
    if bridge.returncode:
        raise NoEngine(f"root may not make a network bridge, as dockerd needs: {bridge.stderr.strip()}")
    options = {
        "data-root": directory / "data",
        "exec-root": directory / "exec",
        "pidfile": directory / "pid",
        "host": f"unix://{directory}/docker.sock",
        "storage-driver": "overlay2",  # in place of it dockerd would choose one that copies whole layers
        "oom-score-adjust": 0,  # a lower one needs a capability that machines in a container lack
        # docker0, iptables and the cgroup /docker may be another engine's
        "bridge": name,
        "iptables": "false",
        "ip6tables": "false",
        "ip-forward": "false",
        "ip-masq": "false",
        "cgroup-parent": f"/{name}",
        "exec-opt": "native.cgroupdriver=cgroupfs",
    }
    command = alone("sh", "-c", _START, "dockerd", *(f"--{option}={value}" for option, value in options.items()))
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, start_new_session=True, env=os.environ | {"PATH": _PATH}
        )
    engine = Engine(directory, process)
    deadline = time.monotonic() + _READY_S
    while engine.call("version", check=False).returncode:
        if process.poll() is not None or time.monotonic() > deadline:
            engine.stop()
            raise NoEngine(f"dockerd does not start; the end of its log:\n{_end(log)}")
        time.sleep(0.2)
    return engine


def _end(log: Path) -> str:
    return "\n".join([line for line in log.read_text().splitlines() if "level=info" not in line][-5:])
