"""A recipe's file: YAML plus dotted overrides to a RunConfig and back, with all problems and places in one message."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from flashslm.config import RunConfig
from flashslm.config.problems import MAX_SHOWN, describe
from flashslm.config.recipe_text import MAX_BYTES, UnreadableText, decode, read_values
from flashslm.config.reference import near_settings
from flashslm.config.secret import MISPLACED, SECRET_FIELDS, leaves, places_of_secrets, without_secrets

Recipe = TypeVar("Recipe", bound=RunConfig)
EXPERIMENT = "experiment"  # the section by which an experiment's recipe is known
_MAX_PROBLEMS = 50  # that one message lists


class ConfigError(ValueError):
    """A recipe that cannot be used: the message names every problem, its place and what is allowed."""


class _Places:
    """Where each value was given: a line of the file, or an override."""

    def __init__(self, file: Path, lines: dict[tuple[str | int, ...], int]):
        self._file = file
        self._lines = {".".join(map(str, path)): line for path, line in lines.items()}
        self._overrides: set[str] = set()

    def override(self, where: str) -> None:
        self._overrides.add(where)

    def of(self, problem: str) -> str:
        """The place of `where: what is wrong`: that of the value, or of the nearest section around it that is given."""
        where = problem.split(": ", 1)[0].split(",")[0].replace("[", ".").replace("]", "").split(" ")[0]
        while where:
            if where in self._overrides:
                return f"override {where}"
            if where in self._lines:
                return f"{self._file}:{self._lines[where]}"
            where = where.rpartition(".")[0]
        return f"{self._file}:{self._lines.get('', 1)}"


def load(
    path: str | Path, overrides: list[str] | None = None, checks: Callable[[RunConfig], list[str]] = lambda _: []
) -> RunConfig:
    """Read a recipe and apply overrides such as `training.steps=50`; `checks` may add problems of their own.

    Raises ConfigError as `load_as`.
    """
    return load_as(RunConfig, path, overrides, checks)


def load_as(
    schema: type[Recipe],
    path: str | Path,
    overrides: list[str] | None = None,
    checks: Callable[[Recipe], list[str]] = lambda _: [],
) -> Recipe:
    """A recipe of this kind, an experiment's for example.

    Raises ConfigError that names all problems with the file's line: text that is not YAML, unknown keys, wrong types,
    values out of range, malformed overrides.
    """
    values, places = _read_mapping(Path(path))
    problems = [p for p in (_apply_override(values, text, places) for text in overrides or []) if p]
    found = [f"{where}: {MISPLACED}" for where in places_of_secrets(values) if where not in SECRET_FIELDS]
    if EXPERIMENT in values and EXPERIMENT not in schema.model_fields:
        raise ConfigError(f"recipe '{path}' is that of an experiment: `flashslm experiment {path}` runs it")
    config, invalid, dropped = _validate(values, schema)
    found += invalid
    found += [p for p in (checks(config) if config else []) if not any(name in p for name in dropped)]
    problems += [f"{places.of(problem)}: {problem}" for problem in found]
    if problems or not config:
        raise ConfigError(f"recipe '{path}' has {len(problems)} problem(s):\n{_listed(problems)}")
    return config


def is_experiment(path: str | Path) -> bool:
    """Whether a file is an experiment's recipe; not if it cannot be read, which `load` explains."""
    try:
        return EXPERIMENT in _read_mapping(Path(path))[0]
    except ConfigError:
        return False


def _listed(problems: list[str]) -> str:
    lines = [f"  {number}. {problem}" for number, problem in enumerate(problems[:_MAX_PROBLEMS], start=1)]
    if len(problems) > _MAX_PROBLEMS:
        lines.append(f"  … and {len(problems) - _MAX_PROBLEMS} more")
    return "\n".join(lines)


def _read_mapping(file: Path) -> tuple[dict[str, Any], _Places]:
    if not file.is_file():
        raise ConfigError(f"recipe '{file}' not found: give the path of a YAML file such as configs/demo.yaml")
    with file.open("rb") as stream:
        raw = stream.read(MAX_BYTES + 1)
    try:
        read = read_values(decode(raw))
    except UnreadableText as error:
        raise ConfigError(f"{file}:{error.line}: {without_secrets(error.problem)}") from None
    if not isinstance(read.root, dict):
        line, kind = read.lines.get((), 1), "nothing" if read.root is None else type(read.root).__name__
        raise ConfigError(f"{file}:{line}: the recipe holds {kind}: it must be a mapping of sections")
    return read.root, _Places(file, read.lines)


def _validate(values: dict[str, Any], schema: type[Recipe]) -> tuple[Recipe | None, list[str], set[str]]:
    """Validate, and where that fails drop the offending values and continue, so that one mistake does not hide another.

    Also returns the names that were dropped: a problem of the defaults in their place is not the recipe's.
    """
    problems: list[str] = []
    dropped: set[str] = set()
    while True:
        try:
            return schema.model_validate(values), problems, dropped
        except ValidationError as error:
            errors = error.errors(include_url=False, include_context=False)
        inner = {e["loc"][:-1] for e in errors}  # items that are wrong themselves: their list is not also too short
        wrong = [e for e in errors if e["type"] != "too_short" or e["loc"] not in inner]
        shown = _MAX_PROBLEMS - len(problems)  # only these need a hint
        problems += [describe(e, schema, near_settings if n < shown else None) for n, e in enumerate(wrong)]
        dropped |= {".".join(str(part) for part in e["loc"][:2]) for e in errors}
        if not _drop_all(values, (e["loc"] for e in errors)):
            return None, problems, dropped


def _drop_all(values: dict[str, Any], locations: Iterable[tuple[Any, ...]]) -> bool:
    """Remove the values there; False if one of them cannot be removed, or nothing was left to remove."""
    results = [_drop(values, location) for location in locations]
    return None not in results and any(results)


def _drop(values: dict[str, Any], location: tuple[Any, ...]) -> bool | None:
    """Remove the value at `location` (a whole section where the section itself is inconsistent): whether it was there.

    None where no removal helps.
    """
    if location == ("name",):
        former, values["name"] = values.get("name"), "unnamed"
        return bool(former != "unnamed")
    keys = [part for part in location[:2] if isinstance(part, str)]
    if not keys:
        return None
    node: Any = values
    for part in keys[:-1]:
        node = node.get(part)
        if not isinstance(node, dict):
            keys = keys[:1]
            node = values
            break
    missing = object()
    return node.pop(keys[-1], missing) is not missing  # gone already where one value had two mistakes


def dump(config: RunConfig) -> str:
    """The resolved recipe as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _apply_override(values: dict[str, Any], text: str, places: _Places) -> str:
    """Set one `a.b=value` (value read as YAML) in place; return the problem, or an empty string."""
    key, separator, raw = text.partition("=")
    shown = without_secrets(text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…")
    if not separator or not key.strip():
        return f"override '{shown}': expected section.key=value, for example training.steps=50"
    *parents, leaf = key.strip().split(".")
    node = values
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            return f"override '{shown}': '{parent}' is a value, not a section"
    try:
        node[leaf] = read_values(raw).root
    except UnreadableText as error:
        return f"override '{shown}': {without_secrets(error.problem)}"
    for where, _ in leaves(node[leaf], key.strip()):
        if where in SECRET_FIELDS:
            return f"override '{where}': every user of the machine sees a command's arguments: write it in the recipe"
    places.override(key.strip())
    return ""
