"""The commit that this process's code is of."""

import os
import subprocess
from pathlib import Path


def commit() -> str | None:
    """FLASHSLM_COMMIT (set in images), or git's HEAD of this package's checkout, `-dirty` where files differ from it.

    None where neither is known.
    """
    if given := os.environ.get("FLASHSLM_COMMIT"):
        return given
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(describe, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()
