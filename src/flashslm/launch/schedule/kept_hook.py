"""The promotion hook of a local schedule: kept in the home of who made the schedule, never in the object store.

A record in the store names the hook's file by its sha256. So whoever can write to the store can neither choose a
command that a running scheduler executes nor an address that it sends to.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from flashslm.config import PromotionHook, RunConfig
from flashslm.infra.process.private import private_directory
from flashslm.infra.state_files import write_whole


def apart(home: Path, name: str, recipe: RunConfig) -> dict[str, Any]:
    """The fields of the record of schedule `name` that a recipe gives, its hook being kept below `home`."""
    gate = recipe.gate.model_copy(update={"promotion_hook": PromotionHook()})
    stored = recipe.model_copy(update={"gate": gate}).model_dump(mode="json")
    return {"recipe": stored, "hook_sha256": keep(home, name, recipe.gate.promotion_hook)}


def keep(home: Path, name: str, hook: PromotionHook) -> str:
    """Write the hook of schedule `name` below `home`, readable by the owner alone; its sha256, or "" for no hook."""
    if not (hook.command or hook.url):
        return ""
    values = hook.model_dump(mode="json") | {"url": hook.url.get_secret_value()}
    content = json.dumps(values, sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()
    file = _file(home, name, digest)
    private_directory(file.parent)
    write_whole(file, content)
    return digest


def read(home: Path, name: str, digest: str) -> PromotionHook:
    """The hook that `keep` wrote. Raises ValueError where this home has no such file."""
    file = _file(home, name, digest)
    content = file.read_bytes() if file.is_file() else b""
    if hashlib.sha256(content).hexdigest() != digest:
        raise ValueError(
            f"its promotion hook is not in '{home}' (or was changed there): run the scheduler with the --home in which "
            "the schedule was created, or delete it and create it here"
        )
    return PromotionHook.model_validate_json(content)


def forget(home: Path, name: str) -> None:
    """Remove every hook of a schedule that is gone."""
    for file in (home / "schedules" / name).glob("hook-*.json"):
        file.unlink(missing_ok=True)


def _file(home: Path, name: str, digest: str) -> Path:
    return home / "schedules" / name / f"hook-{digest[:16]}.json"
