"""lm-evaluation-harness's own tasks by name, without parsing all of its fourteen thousand YAML files."""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import lm_eval.tasks
from lm_eval.tasks._index import TaskIndex
from lm_eval.tasks._yaml_loader import load_yaml

OWN_TASKS = Path(lm_eval.tasks.__file__).parent
# One file, or a list of them in a line or in lines of their own.
_INCLUDE = re.compile(rb"^include:((?:[ \t]*\n?[ \t]*-[ \t]+\S+)+|[^\n]*)", re.MULTILINE)
_FILE = re.compile(rb"[^\s\[\],'\"#-][^\s\[\],'\"#]*")


@cache
def whole_index(directory: Path = OWN_TASKS) -> dict[str, Any]:
    """Of every file, which takes seconds: once per process."""
    return dict(TaskIndex.build([directory]))


def index_of(names: Sequence[str], directory: Path = OWN_TASKS) -> dict[str, Any]:
    """The part of the whole index that loads these tasks, groups and tags; all of it where a name is not found.

    Parsed are only files that mention a name, or include a file that does, and of a wanted group also those that
    mention its members.
    """
    texts = _texts(directory)
    parsed: dict[Path, dict[str, Any]] = {}
    wanted: set[str] = set()
    new = set(names)
    while new:
        wanted |= new
        words = b"|".join(re.escape(name.encode()) for name in sorted(new))
        mention = re.compile(rb"(?<![\w-])(?:" + words + rb")(?![\w-])")
        for path, text in texts.items():
            if path not in parsed and mention.search(text):
                parsed[path] = _parse(path)
        groups = [values for values in parsed.values() if values.get("group") in wanted]
        new = {member for values in groups for member in _members(values.get("task"))} - wanted
    index: dict[str, Any] = {}
    for path in texts:  # in the harness's order: of two files with one name the first counts
        with suppress(Exception):  # as in TaskIndex.build
            TaskIndex.process_cfg(parsed.get(path, {}), path, index)
    return index if wanted <= index.keys() else whole_index(directory)


def _parse(path: Path) -> dict[str, Any]:
    """Empty for a file that the harness skips because it cannot read it."""
    try:
        return dict(load_yaml(path, resolve_func=False))
    except Exception:  # as in TaskIndex.build
        return {}


def _members(task: Any) -> Iterator[str]:
    """The names in a group's `task`: texts, or mappings that name one and change it."""
    if isinstance(task, str):
        yield task
    elif isinstance(task, dict):
        yield from _members(task.get("task"))
        yield from _members(task.get("group"))
    elif isinstance(task, list):
        for item in task:
            yield from _members(item)


@cache
def _texts(directory: Path) -> dict[Path, bytes]:
    """Every task file, in the harness's order, with the text of what it includes."""
    own: dict[Path, bytes] = {}

    def read(path: Path, above: Iterable[Path] = ()) -> bytes:
        if path not in own:
            own[path] = path.read_bytes() if path.is_file() else b""
        text = own[path]
        found = _INCLUDE.search(text)
        names = _FILE.findall(found[1]) if found else []
        paths = [path.parent / name.decode() for name in names]
        return b"\n".join([text, *(read(other, (*above, path)) for other in paths if other not in above)])

    return {path: read(path) for path in TaskIndex._iter_yaml_files(directory)}
