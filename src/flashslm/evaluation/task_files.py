"""Tasks of lm-evaluation-harness that a recipe names by their YAML file: what such a file reads, and its digest.

No torch and no lm_eval here: a recipe is judged where it is read.
"""

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from flashslm.config import EvaluationConfig, digest
from flashslm.data.source_paths import content_state, tree_state
from flashslm.evaluation.task_data import LOADERS

SUFFIXES = (".yaml", ".yml")
_FUNCTION = "!function"
_PATH_KEYS = ("data_files", "data_dir")  # of dataset_kwargs


class _Loader(yaml.SafeLoader):
    """Takes the harness's tag `!function module.name` for its text."""


_Loader.add_constructor(_FUNCTION, lambda loader, node: f"{_FUNCTION} {node.value}")


def is_file(task: str) -> bool:
    """Whether a task is named by a file; other names are the harness's own."""
    return task.endswith(SUFFIXES)


def task_name(file: Path) -> str:
    """The task that a file defines. Raises ValueError where it cannot be read or defines no single task."""
    name = _with_includes(file).get("task")
    if not isinstance(name, str) or not name:
        raise ValueError(f"'{file}' defines no task: it needs `task: NAME`; a group's tasks are named one by one")
    return name


def problems(tasks: Sequence[str]) -> Iterator[str]:
    """What is wrong with the files among some tasks, before anything runs."""
    names: dict[str, str] = {task: task for task in tasks if not is_file(task)}
    for task in filter(is_file, tasks):
        try:
            name = task_name(Path(task))
            foreign = [str(path) for path in files_read(Path(task)) if path.stat().st_uid not in (0, os.getuid())]
            if missing := _missing_data(Path(task)):
                yield f"'{task}' reads {', '.join(missing)}, which is not there (relative paths: from here)"
            if foreign:  # its functions would run as this user
                yield f"'{task}': {', '.join(foreign)} belongs to another user: take a copy of your own"
            if name in names:
                yield f"'{task}' and '{names[name]}' are both the task '{name}': name one of them otherwise"
            names[name] = task
        except (ValueError, OSError) as error:
            yield " ".join(str(error).split())


def with_digests(config: EvaluationConfig) -> EvaluationConfig:
    """The section with the digest of each task file and of the directory of sets, by which changed ones are other work.

    Raises ValueError.
    """
    return config.model_copy(update={"lm_eval_files": _digests(config)})


def takes_task_data(task: str) -> bool:
    """Whether the set of a task comes from evaluation.task_data, if that is given: a file may name data of its own."""
    if not is_file(task):
        return True
    values = _with_includes(Path(task))
    return values.get("dataset_path") not in LOADERS and not _data_patterns(values)  # of LOADERS URLs too


def _digests(config: EvaluationConfig) -> dict[str, str]:
    found = {task: content_digest(Path(task)) for task in config.lm_eval_tasks if is_file(task)}
    if config.lm_eval_tasks and config.task_data:
        found[config.task_data] = digest(tree_state(Path(config.task_data)))
    return found


def check_unchanged(config: EvaluationConfig) -> None:
    """Raise ValueError where a task file, or the directory of sets, is not what it was when the run began."""
    found = _digests(config) if config.lm_eval_files else {}
    for path, known in config.lm_eval_files.items():
        if found.get(path) != known:
            raise ValueError(f"'{path}', or a file that it reads, changed after the run began: run it again")


def content_digest(file: Path) -> str:
    """A sha256 over a task file and every local file that it reads."""
    return digest([tree_state(path) if path.is_dir() else content_state(path) for path in files_read(file)])


def files_read(file: Path) -> list[Path]:
    """A task file, the files that it includes, the Python files beside them if it names functions, its local data."""
    found = [file]
    for included in _all_includes(file):
        found += files_read_alone(included)
    return list(dict.fromkeys([*found, *files_read_alone(file)]))


def files_read_alone(file: Path) -> list[Path]:
    """The same without what it includes."""
    found = [file]
    text = file.read_text(encoding="utf-8")
    if _FUNCTION in text:
        found += sorted(file.parent.glob("*.py"))
    found += [Path(path) for pattern in _data_patterns(_read(file)) for path in sorted(glob.glob(pattern))]
    return list(dict.fromkeys(found))


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ValueError(f"task file '{file}' not found: give the path of a YAML file, or a task's name")
    try:
        values = yaml.load(file.read_bytes(), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"task file '{file}' cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"task file '{file}' holds no mapping: it needs `task: NAME` and what the harness asks for")
    return values


def _includes(file: Path) -> list[Path]:
    named = _read(file).get("include", [])
    listed = [named] if isinstance(named, str) else named
    paths = [file.parent / str(name) for name in listed]
    return [path for path in paths if path.is_file()]  # others are the harness's own


def _all_includes(file: Path) -> list[Path]:
    """What a file includes, directly or not, the nearest first. Raises ValueError for a file that includes itself."""
    found: list[Path] = []
    waiting = _includes(file)
    while waiting:
        path = waiting.pop(0)
        if path.samefile(file):
            raise ValueError(f"task file '{file}' includes itself, directly or by another file: take the include out")
        if path not in found:
            found.append(path)
            waiting += _includes(path)
    return found


def _with_includes(file: Path) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for included in reversed(_all_includes(file)):
        values |= _read(included)
    return values | _read(file)


def _data_patterns(values: dict[str, Any]) -> list[str]:
    """Local paths and globs of a task's data, as they are written."""
    options = values.get("dataset_kwargs")
    named = [options.get(key) for key in _PATH_KEYS] if isinstance(options, dict) else []
    source = values.get("dataset_path")
    if isinstance(source, str) and source and Path(source).exists():
        named.append(source)
    return [text for text in _texts(named) if "://" not in text]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str) and value:
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def _missing_data(file: Path) -> list[str]:
    """Data of a loader for local files that is not there; of another one the paths are the hub's."""
    values = _with_includes(file)
    if values.get("dataset_path") not in ("json", "csv", "parquet", "text", "arrow"):
        return []
    return [f"'{pattern}'" for pattern in _data_patterns(values) if not glob.glob(pattern)]
