"""What each step of earlier runs came to, so that a cached step has a result to show.

kfp's cache keeps the outputs of a task and not what the step said of them. A task's key is a digest of its step and of
all that it was given, so the same task of a later run has the same.
"""

import json
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from flashslm.config import digest
from flashslm.infra.state_files import read_state, write_whole

MOST = 2000  # of the newest
_adding = threading.Lock()  # steps of a run end in threads of one process, which holds the home


def task_key(step: str, arguments: dict[str, Any]) -> str:
    """Of a task's step and arguments; artifacts count by their address. Raises TypeError as `digest` does."""
    return digest([step, {name: _plain(value) for name, value in arguments.items()}])[:32]


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.uri if hasattr(value, "uri") else value


def read(home: Path) -> dict[str, str]:
    return read_state(_file(home), _parse) or {}


def add(home: Path, key: str, summary: str) -> None:
    """Keep what the task of this key came to, as the newest. Whoever calls holds the home's lock."""
    with _adding, suppress(OSError):  # only for display
        kept = {known: text for known, text in read(home).items() if known != key} | {key: summary}
        _file(home).parent.mkdir(parents=True, exist_ok=True)
        write_whole(_file(home), json.dumps(dict(list(kept.items())[-MOST:])))


def _parse(content: bytes) -> dict[str, str]:
    found = json.loads(content)
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise ValueError("not a mapping of texts")
    return found


def _file(home: Path) -> Path:
    return home / "kfp" / "summaries.json"
