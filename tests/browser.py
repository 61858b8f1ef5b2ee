"""Chromium without a window: what a page holds after its scripts have run."""

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
