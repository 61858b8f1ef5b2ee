"""Where compiled kernels and the winners of their tuning lie on disk: by GPU and by the versions that make them.

No torch here: a step looks for the cache before it imports anything heavy.
"""

import importlib.metadata
import json
import os
import subprocess
from functools import cache
from hashlib import sha256
from pathlib import Path

VARIABLE = "FLASHSLM_KERNEL_CACHE"
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
    """This machine's cache for these versions: $FLASHSLM_KERNEL_CACHE, by default ~/.cache/flashslm/kernels."""
    root = os.environ.get(VARIABLE) or Path.home() / ".cache" / "flashslm" / "kernels"
    return Path(root) / cache_key()


def _gpu() -> str:
    """Name and driver of the first GPU, as nvidia-smi says; empty where there is none."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    return next(iter(found.strip().splitlines()), "")
