"""A container engine of the test's own: dockerd from Debian's packages, everything it keeps in one directory."""

import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

NEEDS = {"docker": "docker.io", "dockerd": "docker.io", "debootstrap": "debootstrap", "iptables": "iptables"}
_READY_S = 60.0


class NoEngine(RuntimeError):
    """This machine cannot run containers; the message says what it lacks."""


@dataclass
class Engine:
    """A running dockerd; `env` leads the client to it."""

    directory: Path
    process: subprocess.Popen[bytes]

    @property
    def env(self) -> dict[str, str]:
        # Debian's client, whose builder copies between stages six times faster than the classic one. A newer client
        # that stands before it would need a plug-in for that.
        path = f"/usr/bin:{os.environ['PATH']}"
        return os.environ | {
            "DOCKER_HOST": f"unix://{self.directory}/docker.sock",
            "DOCKER_BUILDKIT": "1",
            "PATH": path,
        }

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
        """End the engine, its containers and its network namespaces."""
        running = self.output("ps", "--quiet").split()
        if running:
            self.call("kill", *running, check=False)
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=60)
        for namespace in (self.directory / "exec" / "netns").glob("*"):
            subprocess.run(["umount", namespace], capture_output=True, check=False)
        subprocess.run(["ip", "link", "delete", "docker0"], capture_output=True, check=False)


def start(directory: Path) -> Engine:
    """Start dockerd with its images and sockets below `directory`. Raises NoEngine."""
    if os.geteuid():
        raise NoEngine("containers need root here: dockerd and debootstrap refuse other users; run this with sudo")
    if missing := sorted({package for command, package in NEEDS.items() if not shutil.which(command)}):
        raise NoEngine(f"not installed: apt-get install --no-install-recommends {' '.join(missing)}")
    directory.mkdir(parents=True, exist_ok=True)
    log = directory / "dockerd.log"
    options = {
        "--data-root": directory / "data",
        "--exec-root": directory / "exec",
        "--pidfile": directory / "pid",
        "--host": f"unix://{directory}/docker.sock",
        "--oom-score-adjust": 0,  # a lower one needs a capability that machines in a container lack
    }
    command = ["dockerd", *(f"{name}={value}" for name, value in options.items())]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    engine = Engine(directory, process)
    deadline = time.monotonic() + _READY_S
    while engine.call("version", check=False).returncode:
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise NoEngine(f"dockerd does not start; the end of its log:\n{log.read_text()[-3000:]}")
        time.sleep(0.2)
    return engine
