"""Steps in processes of their own that wait at a moment that a test names, so that what it does meets them there."""

import json
import os
from pathlib import Path

HERE = Path(__file__).parent


def held_at(step: str, at: int, file: Path) -> dict[str, str]:
    """The environment of a run whose step waits while the file, which is made, exists and nothing asks it to end: from
    that training step on or, where a step's progress names none, from so many lines of progress of one process on.
    """
    file.touch()
    return held(HOLD=json.dumps({"step": step, "at": at, "while": str(file)}))


def workers_held_at(training_step: int) -> dict[str, str]:
    """The environment of a step whose worker of rank 0 waits there until it is asked to end."""
    return held(HOLD_WORKERS=str(training_step))


def decoding_held(file: Path) -> dict[str, str]:
    """The environment of a server that decodes no further while the file exists."""
    return held(HOLD_DECODING=str(file))


def held(**variables: str) -> dict[str, str]:
    return variables | {"PYTHONPATH": os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))}
