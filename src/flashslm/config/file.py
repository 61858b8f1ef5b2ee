"""A recipe's file: YAML plus dotted overrides to a RunConfig and back, with every problem in one message."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from flashslm.config import RunConfig
from flashslm.config.secret import MISPLACED, SECRET_FIELDS, leaves, places_of_secrets, without_secrets


class ConfigError(ValueError):
    """A recipe that cannot be used: the message names every problem and what is allowed."""


class _EachKeyOnce(yaml.SafeLoader):
    """YAML forbids a key twice in a mapping; PyYAML would take the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"key '{key.value}' is there twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def load(
    path: str | Path, overrides: list[str] | None = None, checks: Callable[["RunConfig"], list[str]] = lambda _: []
) -> RunConfig:
    """Read a recipe and apply overrides such as `training.steps=50`; `checks` may add problems of their own.

    Raises ConfigError that names all problems: unknown keys, wrong types, values out of range, malformed overrides.
    """
    values = _read_mapping(Path(path))
    problems = [p for p in (_apply_override(values, text) for text in overrides or []) if p]
    problems += [f"{where}: {MISPLACED}" for where in places_of_secrets(values) if where not in SECRET_FIELDS]
    config, found, dropped = _validate(values)
    problems += found
    problems += [p for p in (checks(config) if config else []) if not any(name in p for name in dropped)]
    if problems or not config:
        listed = "\n".join(f"  {i}. {p}" for i, p in enumerate(problems, start=1))
        raise ConfigError(f"recipe '{path}' has {len(problems)} problem(s):\n{listed}")
    return config


def _read_mapping(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ConfigError(f"recipe '{file}' not found: give the path of a YAML file such as configs/demo.yaml")
    try:
        values = yaml.load(file.read_text(encoding="utf-8"), Loader=_EachKeyOnce)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe '{file}' is not valid YAML: {without_secrets(str(error))}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"recipe '{file}' holds {type(values).__name__}: it must be a mapping of sections")
    return values


def _validate(values: dict[str, Any]) -> tuple[RunConfig | None, list[str], set[str]]:
    """Validate, and where that fails drop the offending values and go on, so that one mistake does not hide another.

    Also returns the names that were dropped: what the defaults in their place amount to is no mistake of the recipe.
    """
    problems: list[str] = []
    dropped: set[str] = set()
    while True:
        try:
            return RunConfig.model_validate(values), problems, dropped
        except ValidationError as error:
            errors = error.errors()
        problems += [_describe(e) for e in errors]
        dropped |= {".".join(str(part) for part in e["loc"][:2]) for e in errors}
        if not all([_drop(values, e["loc"]) for e in errors]):
            return None, problems, dropped


def _drop(values: dict[str, Any], location: tuple[Any, ...]) -> bool:
    """Remove the value at `location` (a whole section where the section itself is inconsistent); False if it cannot."""
    if location == ("name",):
        values["name"] = "unnamed"
        return True
    keys = [part for part in location[:2] if isinstance(part, str)]
    if not keys:
        return False
    node: Any = values
    for part in keys[:-1]:
        node = node.get(part)
        if not isinstance(node, dict):
            keys = keys[:1]
            node = values
            break
    node.pop(keys[-1], None)  # gone already where one value had two mistakes
    return True


def dump(config: RunConfig) -> str:
    """The resolved recipe as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _apply_override(values: dict[str, Any], text: str) -> str:
    """Set one `a.b=value` (value read as YAML) in place; return the problem, or an empty string."""
    key, separator, raw = text.partition("=")
    if not separator or not key.strip():
        return f"override '{text}': expected section.key=value, for example training.steps=50"
    *parents, leaf = key.strip().split(".")
    node = values
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            return f"override '{text}': '{parent}' is a value, not a section"
    try:
        node[leaf] = yaml.safe_load(raw)
    except yaml.YAMLError as error:
        return without_secrets(f"override '{text}': the value is not valid YAML ({error})")
    for where, _ in leaves(node[leaf], key.strip()):
        if where in SECRET_FIELDS:
            return f"override '{where}': every user of the machine sees a command's arguments: write it in the recipe"
    return ""


def _describe(error: Any) -> str:
    """One pydantic error as: where, what was given, what is allowed."""
    where = ".".join(str(part) for part in error["loc"]) or "recipe"
    if error["type"] == "extra_forbidden":
        allowed = ", ".join(_fields_at(error["loc"][:-1]))
        return f"{where}: unknown key; allowed here: {allowed}"
    message = error["msg"].removeprefix("Value error, ")
    silent = isinstance(error.get("input"), dict) or error["type"] == "missing" or where in SECRET_FIELDS
    given = "" if silent else f" (given: {error['input']!r})"
    return without_secrets(f"{where}: {message}{given}")


def _fields_at(location: tuple[Any, ...]) -> list[str]:
    model: Any = RunConfig
    for part in location:
        inside = get_args(model)  # of a dict: key and value; of a tuple: the item
        model = inside[isinstance(part, str)] if inside else model.model_fields[part].annotation
    return sorted(model.model_fields)
