"""What the images are built from here: a stand-in for the published base, and wheels instead of a package index."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from tests.containers.engine import Engine

ROOT = Path(__file__).parents[2]
REGISTRY = "stand-in.test"  # what the names of images built here begin with
SUITE, PYTHON = "bookworm", "3.11"  # those of the base that the images name


def stand_in_base(engine: Engine, directory: Path) -> str:
    """Import Debian's minimal system with Python as an image; return its name."""
    name = f"{REGISTRY}/base"
    call("debootstrap", "--variant=minbase", "--include=ca-certificates,python3,python3-venv", SUITE, str(directory))
    for archive in (directory / "var/cache/apt/archives").glob("*.deb"):
        archive.unlink()
    (directory / "usr/bin/python").symlink_to("python3")
    call("sh", "-c", f"tar -C {directory} -c . | docker import --change 'CMD [\"python3\"]' - {name}", env=engine.env)
    shutil.rmtree(directory)
    return name


def wheelhouse(directory: Path) -> Path:
    """Wheels of everything the images install, by this machine's pip and from where it takes packages."""
    if ".".join(platform.python_version_tuple()[:2]) != PYTHON:
        raise RuntimeError(
            f"the images have Python {PYTHON}, this is {platform.python_version()}: make setup PYTHON=..."
        )
    extras = ["platform", "train", "evaluation", "orchestrate", "cuda", "-mamba-ssm"]
    wanted = [*call(sys.executable, "images/requirements.py", *extras).split("\n"), "setuptools", "triton", "einops"]
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--wheel-dir", str(directory)]
    locked = ["--constraint", "constraints.txt", "--constraint", "images/constraints.txt"]
    call(*pip, *locked, *filter(None, wanted))
    without = {"MAMBA_SKIP_CUDA_BUILD": "TRUE", "MAMBA_FORCE_BUILD": "TRUE"}  # as images/cuda/Containerfile says
    call(*pip, *locked, "--no-deps", "--no-build-isolation", "mamba-ssm", env=without)
    return directory


def image(engine: Engine, name: str, base: str, wheels: Path) -> str:
    """`images/build NAME` on `base`; return the image's name."""
    settings = {"BASE": base, "WHEELS": str(wheels), "ENGINE": "docker", "REGISTRY": REGISTRY}
    printed = call("images/build", name, env=engine.env | settings)
    return printed.strip().split("\n")[-1].split()[0]


def call(*command: str, env: dict[str, str] | None = None) -> str:
    """Run a command at the checkout's root, `env` above this process's own; the end of its output is in the error."""
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | (env or {}), capture_output=True, text=True, timeout=1200, check=False
    )
    if done.returncode:
        output = (done.stdout + done.stderr)[-4000:]
        raise RuntimeError(f"{' '.join(command)[:200]} ended with {done.returncode}:\n{output}")
    return done.stdout
