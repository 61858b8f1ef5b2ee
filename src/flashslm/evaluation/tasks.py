"""Tasks of lm-evaluation-harness by name. No torch here, and lm_eval only where tasks are named: it needs an extra."""

import difflib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def is_installed() -> bool:
    return find_spec("lm_eval") is not None


def find_tasks(tasks: Sequence[str], include_path: str | Path | None = None) -> Any:
    """A task manager that knows the tasks; lm_eval's own thousands are indexed (seconds) only when they are needed.

    Raises ValueError for names that lm_eval does not have.
    """
    from lm_eval.tasks import TaskManager

    for include_defaults in (False, True):
        manager = TaskManager(include_path=include_path, include_defaults=include_defaults)
        unknown = [task for task in tasks if task not in manager.all_tasks]
        if not unknown:
            return manager
    near = difflib.get_close_matches(unknown[0], manager.all_tasks) or ["arc_easy", "hellaswag", "piqa"]
    raise ValueError(f"lm_eval has no task {', '.join(unknown)}; did you mean {', '.join(near)}?")
