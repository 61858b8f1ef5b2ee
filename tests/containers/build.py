"""What the images are built from here: a stand-in for the published base, and wheels instead of a package index."""

import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from tests.containers.engine import Engine, NoEngine, alone

ROOT = Path(__file__).parents[2]
REGISTRY = "stand-in.test"  # what the names of images built here begin with
SUITE, PYTHON = "bookworm", "3.11"  # those of the base that the images name

_RUNNING: set[subprocess.Popen[str]] = set()
_T = TypeVar("_T")


class Builds:
    """The images, built in the background: the CPU's first, on which the pipeline runs while the others are built."""

    def __init__(self, engine: Engine, directory: Path) -> None:
        self._pool = ThreadPoolExecutor(max_workers=2)
        self._engine = engine
        self._directory = directory
        self.seconds: dict[str, float] = {}
        self._base = self._begin("base", lambda: stand_in_base(engine, directory / "base"))
        self._wheels = self._begin("wheels", lambda: wheelhouse(directory / "wheels"))
        first = self._begin("runtime", lambda: self._build("runtime"), self._base, self._wheels)
        # After the CPU image, whose layers the GPU's shares where torch is the CPU's.
        others = self._begin("cuda, tensorrt-llm", lambda: self._build("cuda", "tensorrt-llm"), first)
        self._images: dict[str, Future[dict[str, str]]] = {"runtime": first, "cuda": others, "tensorrt-llm": others}

    def name(self, image: str) -> str:
        """The image's name, when it is built."""
        return self._images[image].result()[image]

    def close(self) -> None:
        """End what is still being built: a session that was interrupted."""
        for process in tuple(_RUNNING):
            os.killpg(process.pid, signal.SIGKILL)
        self._pool.shutdown(cancel_futures=True)

    def size_bytes(self) -> dict[str, int]:
        """Of what could be built."""
        lines = self._engine.output("image", "ls", "--format", "{{.Repository}}:{{.Tag}}").split()
        return {name: int(self._engine.output("image", "inspect", "--format", "{{.Size}}", name)) for name in lines}

    def _begin(self, what: str, work: Callable[[], _T], *after: Future[Any]) -> Future[_T]:
        def timed() -> _T:
            for other in after:
                other.result()
            started = time.monotonic()
            try:
                return work()
            finally:
                self.seconds[what] = round(time.monotonic() - started, 1)

        return self._pool.submit(timed)

    def _build(self, *names: str) -> dict[str, str]:
        """`images/build NAMES` on the stand-in; the images' names."""
        settings = {"BASE": self._base.result(), "WHEELS": str(self._wheels.result()), "NETWORK": "host"}
        settings |= {"ENGINE": "docker", "REGISTRY": REGISTRY, "TMPDIR": str(self._directory)}
        env = self._engine.env | settings
        printed = call("images/build", *names, env=env).splitlines()
        images = [line.split()[0] for line in printed if line.startswith(f"{REGISTRY}/")]
        return dict(zip(names, images, strict=True))


def stand_in_base(engine: Engine, directory: Path) -> str:
    """Import Debian's minimal system with Python as an image; return its name."""
    name = f"{REGISTRY}/base"

    def fetch() -> None:
        shutil.rmtree(directory, ignore_errors=True)
        packages = "ca-certificates,python3,python3-venv"
        call(*alone("debootstrap", "--variant=minbase", f"--include={packages}", SUITE, str(directory)), env=engine.env)

    twice(fetch)
    for archive in (directory / "var/cache/apt/archives").glob("*.deb"):
        archive.unlink()
    (directory / "usr/bin/python").symlink_to("python3")
    call("sh", "-c", f"tar -C {directory} -c . | docker import --change 'CMD [\"python3\"]' - {name}", env=engine.env)
    shutil.rmtree(directory)
    return name


def wheelhouse(directory: Path) -> Path:
    """Wheels of everything the images install, by this machine's pip and from where it takes packages."""
    temporary = {"TMPDIR": str(directory.parent)}
    extras = ["platform", "train", "evaluation", "orchestrate", "cuda", "-mamba-ssm"]
    wanted = [*call(sys.executable, "images/requirements.py", *extras).split("\n"), "setuptools", "triton", "einops"]
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--wheel-dir", str(directory)]
    locked = ["--constraint", "constraints.txt", "--constraint", "images/constraints.txt"]
    twice(lambda: call(*pip, *locked, *filter(None, wanted), env=temporary))
    # as images/cuda/Containerfile says
    without = temporary | {"MAMBA_SKIP_CUDA_BUILD": "TRUE", "MAMBA_FORCE_BUILD": "TRUE"}
    twice(lambda: call(*pip, *locked, "--no-deps", "--no-build-isolation", "mamba-ssm", env=without))
    return directory


def check_python() -> None:
    """Raises NoEngine where wheels for this Python are not those of the images'."""
    if ".".join(platform.python_version_tuple()[:2]) != PYTHON:
        found = platform.python_version()
        raise NoEngine(f"the images have Python {PYTHON}, this is {found}: make setup PYTHON=python{PYTHON}")


def call(*command: str, env: dict[str, str] | None = None) -> str:
    """Run a command at the checkout's root, `env` above this process's own; return its output.

    Raises RuntimeError with the end of its output, InterruptedError where a signal ended it.
    """
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | (env or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    _RUNNING.add(process)
    try:
        output, errors = process.communicate(timeout=1200)
    finally:
        _RUNNING.remove(process)
    if process.returncode:
        error = InterruptedError if process.returncode < 0 else RuntimeError
        raise error(f"{' '.join(command)[:200]} ended with {process.returncode}:\n{(output + errors)[-4000:]}")
    return output


def twice(download: Callable[[], object]) -> None:
    """One failed answer of a mirror is not a failure of the images."""
    try:
        download()
    except RuntimeError:
        download()
