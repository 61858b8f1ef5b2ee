"""Chromium without a window: what a page holds after its scripts have run."""

import re
import shutil
import subprocess
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


def rendered(address: str, profile: Path, width: int = 1400, time_ms: int = 4000) -> str:
    """The page's document as HTML, once its scripts have had `time_ms` of their own clock."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--dump-dom"]
    options += [f"--user-data-dir={profile}", f"--virtual-time-budget={time_ms}", f"--window-size={width},1000"]
    command = [str(CHROMIUM), *options, address]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def rendered_with(expected: str, address: str, profile: Path, attempts: int = 4) -> str:
    """The page once it holds what the pattern finds: on a busy machine a server may answer after the page's own clock
    has run out. The last attempt's page if none does.
    """
    page = ""
    for _ in range(attempts):
        page = rendered(address, profile, time_ms=30_000)
        if re.search(expected, page, re.DOTALL):
            break
    return page
