"""The directory of one run below `runs/`, and the link to the latest that succeeded."""

import json
import logging
import os
import platform
import sys
import time
import uuid
from contextlib import suppress
from importlib.metadata import distributions
from itertools import chain, count
from pathlib import Path
from typing import Any

from flashslm.config import RunConfig
from flashslm.config import file as config_file
from flashslm.infra.checkout import commit
from flashslm.infra.state_files import write_whole
from flashslm.launch.compiling import code_digest

_log = logging.getLogger(__name__)


def make_run_dir(runs: Path, config: RunConfig) -> Path:
    """A directory that no other run has, whatever home it uses; its name is the run's id."""
    runs.mkdir(parents=True, exist_ok=True)
    begun = time.strftime("%Y%m%d-%H%M%S-") + config.name
    for run_dir in (runs / f"{begun}{suffix}" for suffix in chain([""], (f"-{n}" for n in count(2)))):
        with suppress(FileExistsError):
            run_dir.mkdir()
            break
    write_whole(run_dir / "config.yaml", config_file.dump(config))
    write_whole(run_dir / "environment.json", json.dumps(environment(), indent=1))
    return run_dir


def environment() -> dict[str, Any]:
    """Where and when the run was made: commit, code digest, Python, platform, load, versions of installed packages."""
    return {
        "commit": commit(),
        "code_digest": code_digest(),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "load_average_1min": os.getloadavg()[0],
        "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "packages": dict(sorted((d.metadata["Name"], d.version) for d in distributions())),
    }


def point_latest(runs: Path, run_dir: Path) -> None:
    """Move the link in one step, so that a reader always finds one."""
    fresh = runs / f".latest-{uuid.uuid4().hex[:8]}"
    fresh.symlink_to(run_dir.name)
    try:
        fresh.replace(runs / "latest")
    except OSError as error:  # a directory of that name
        fresh.unlink()
        _log.warning("%s does not lead to %s: %s", runs / "latest", run_dir, error)
