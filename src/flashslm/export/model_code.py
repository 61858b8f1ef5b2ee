"""The Python files of an export: this project's own, known by their digests. A loader runs them."""

import hashlib
from functools import cache
from pathlib import Path

TEMPLATES = Path(__file__).parent / "templates"
CONFIGURATION_FILE = "configuration_nemotron_flash.py"
MODELING_FILE = "modeling_nemotron_flash.py"


@cache
def own_code() -> dict[str, str]:
    """The sha256 of each file that an export carries, by its name."""
    return {name: _sha256(TEMPLATES / name) for name in (CONFIGURATION_FILE, MODELING_FILE)}


def foreign_code(directory: Path) -> dict[str, str]:
    """The Python files of a directory that are not this project's, by their path: what is wrong with each."""
    own, found = own_code(), {}
    for file in sorted(directory.rglob("*.py")):
        name = file.relative_to(directory).as_posix()
        if file.is_symlink() or not file.is_file():  # not read: a pipe would be waited for
            found[name] = "a link or no file"
        elif name not in own:
            found[name] = "no file of this format: a loader may run it"
        elif (digest := _sha256(file)) != own[name]:
            found[name] = f"not this project's code: sha256 {digest[:12]}…, expected {own[name][:12]}…"
    return found


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
