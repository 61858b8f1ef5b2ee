"""Where compiled kernels and the winners of their tuning lie on disk: by GPU and by the versions that make them.

No torch here: a step looks for the cache before it imports anything heavy.
"""

import atexit
import importlib.metadata
import json
import logging
import os
import shutil
import subprocess
import tempfile
from functools import cache
from hashlib import sha256
from pathlib import Path

VARIABLE = "FLASHSLM_KERNEL_CACHE"
_log = logging.getLogger(__name__)
PACKAGES = ("torch", "triton", "flash-linear-attention", "fla-core", "mamba-ssm")


@cache
def cache_facts() -> dict[str, str]:
    """What a compiled kernel depends on: GPU, driver, and the packages that write or compile kernels."""
    facts = {"gpu": _gpu()}
    for package in PACKAGES:
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            facts[package] = ""
    return facts


@cache
def cache_key() -> str:
    """A digest of `cache_facts`."""
    return sha256(json.dumps(cache_facts(), sort_keys=True).encode()).hexdigest()[:16]


def cache_directory() -> Path:
    """This machine's cache for these versions: $FLASHSLM_KERNEL_CACHE, by default ~/.cache/flashslm/kernels.

    Where that cannot be written, as in a pod whose file system is read-only, it is a temporary directory of this
    process and its children, after a warning: kernels are then compiled, or fetched from the object store, once more.
    """
    given = os.environ.get(VARIABLE)
    root = Path(given) if given else Path.home() / ".cache" / "flashslm" / "kernels"
    return _writable(root) / cache_key()


@cache
def _writable(root: Path) -> Path:
    try:
        root.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=root).close()
        return root
    except OSError as error:
        instead = tempfile.mkdtemp(prefix="flashslm-kernels-")
        _log.warning(
            "compiled kernels cannot be kept in '%s' (%s): they go to '%s' and are gone with this process; set %s to a "
            "directory that can be written",
            *(root, error.strerror, instead, VARIABLE),
        )
    atexit.register(shutil.rmtree, instead, ignore_errors=True)
    os.environ[VARIABLE] = instead  # for worker processes
    return Path(instead)


def _gpu() -> str:
    """Name and driver of the first GPU, as nvidia-smi says; empty where there is none."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    return next(iter(found.strip().splitlines()), "")
