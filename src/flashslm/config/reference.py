"""What each setting of a recipe means: the reference page, the JSON schema for editors, and one setting's entry.

All three are read off the sections' own fields, so that they cannot differ from what a recipe may say.
"""

import difflib
import inspect
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args

from pydantic import BaseModel

from flashslm.config.experiment import ExperimentConfig
from flashslm.config.recipe import RunConfig
from flashslm.config.steps import STEP_SECTIONS

_GROUPED_DIGITS = r"^[0-9]+(_[0-9]+)+$"
_BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


@dataclass(frozen=True)
class Setting:
    """`key` is dotted, with <name> for a key of one's own and [] for an item of a list; `default` is as YAML has it."""

    key: str
    allowed: str
    default: str
    description: str

    @property
    def section(self) -> str:
        return self.key.split(".")[0]


def settings(section: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[Setting]:
    """Every setting of a section and of those inside it, in the order in which they are declared."""
    schema = section.model_json_schema()
    for name, field in section.model_fields.items():
        inner, suffix = _inner_section(field.annotation)
        if inner is None or suffix:
            default = "" if field.is_required() else _as_yaml(field.get_default(call_default_factory=True))
            allowed = _allowed(schema["properties"][name], schema.get("$defs", {}))
            yield Setting(prefix + name, allowed, default, field.description or "")
        if inner:
            yield from settings(inner, f"{prefix}{name}{suffix}.")


def read_by(section: str) -> list[str]:
    """The steps whose work a section of the recipe decides; check_recipe reads all of them."""
    return [step for step, sections in STEP_SECTIONS.items() if section in sections and step != "check_recipe"]


def near_settings(key: str) -> list[str]:
    """Settings whose key, or whose last part, is like what was given: at most four."""
    keys = _keys()
    name = key.rpartition(".")[2]
    same = [known for known in keys if known.rpartition(".")[2] == name]
    return (same or difflib.get_close_matches(key, keys, cutoff=0.75))[:4]


@cache
def _keys() -> tuple[str, ...]:
    return tuple(setting.key for setting in settings())


def differences(config: RunConfig) -> dict[str, Any]:
    """What a recipe says that is not the default, by dotted key, as JSON has it."""
    required = {name: getattr(config, name) for name, field in RunConfig.model_fields.items() if field.is_required()}
    return dict(_differences(config.model_dump(mode="json"), RunConfig(**required).model_dump(mode="json")))


def _differences(values: dict[str, Any], defaults: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        default = defaults.get(name)
        if isinstance(value, dict) and isinstance(default, dict) and default:
            yield from _differences(value, default, f"{prefix}{name}.")
        elif value != default:
            yield prefix + name, value


def json_schema() -> dict[str, Any]:
    """A recipe's JSON schema. YAML 1.2, which editors speak, has no 1_000: such a text stands for an integer."""
    schema: dict[str, Any] = _with_grouped_digits(RunConfig.model_json_schema())
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema


def page() -> str:
    """The reference as Markdown: a table for each section, with the steps that a change runs again."""
    every = list(settings())
    parts = [_HEAD, _table([s for s in every if "." not in s.key])]
    for name, field in RunConfig.model_fields.items():
        section, _ = _inner_section(field.annotation)
        if section:
            steps = ", ".join(f"`{step}`" for step in read_by(name)) or "no step: the launchers take it"
            parts += [f"\n## {name}\n\n{inspect.getdoc(section)}\n\nRead by {steps}.\n"]
            parts += [_table([s for s in every if s.section == name])]
    parts += [f"\n## experiment\n\n{inspect.getdoc(ExperimentConfig)}\n\nIn recipes of `flashslm experiment` alone.\n"]
    parts += [_table(list(settings(ExperimentConfig, "experiment.")))]
    return "\n".join(parts)


_HEAD = """# Recipe reference

Written by `make recipe-reference` from the settings' own descriptions in `src/flashslm/config/`. A recipe is a YAML
file; an unknown key is an error. `flashslm config explain training.steps` prints one entry, `flashslm config check
FILE` names what is wrong in a recipe or has no effect in it. Editors complete and check recipes by
`configs/recipe.schema.json`, which the first line of each file in `configs/` names.
"""


def _table(entries: list[Setting]) -> str:
    rows = [f"| `{s.key}` | {_cell(s.allowed)} | {_code(s.default)} | {_cell(s.description)} |" for s in entries]
    return "\n".join(["| setting | allowed | default | meaning |", "|---|---|---|---|", *rows])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|") if text else "required"


def _inner_section(annotation: Any) -> tuple[type[BaseModel] | None, str]:
    """The section that a field holds, and how its keys continue the field's own."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return annotation, ""
    for item in get_args(annotation):
        if inspect.isclass(item) and issubclass(item, BaseModel):
            return item, ".<name>" if getattr(annotation, "__origin__", None) is dict else "[]"
    return None, ""


def _as_yaml(value: Any) -> str:
    """In flow style, as one would write it."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json", exclude_defaults=True)
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_as_yaml, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_as_yaml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, int) and value >= 10_000:
        return f"{value:_}"
    if isinstance(value, bool | int | float) or value is None:
        return json.dumps(value)
    return str(value) or '""'


def _allowed(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    """In words, from a field's JSON schema."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_allowed(option, definitions) for option in schema["anyOf"]))
    if "$ref" in schema:
        return _allowed(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "enum" in schema or "const" in schema:
        return ", ".join(str(value) or '""' for value in schema.get("enum", [schema.get("const")]))
    if schema["type"] == "array":
        at_least = "one or more" if schema.get("minItems") else "list"
        return f"{at_least} of: {_allowed(schema['items'], definitions)}"
    if schema["type"] == "object":
        return "section" if "properties" in schema else "mapping"
    kind = {"string": "text", "boolean": "true, false"}.get(schema["type"], schema["type"])
    if {"minimum", "maximum"} <= schema.keys():
        return f"{kind}, {_as_yaml(schema['minimum'])} to {_as_yaml(schema['maximum'])}"
    return ", ".join([kind, *(f"{sign} {_as_yaml(schema[name])}" for name, sign in _BOUNDS.items() if name in schema)])


def _with_grouped_digits(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_with_grouped_digits(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    changed = {key: _with_grouped_digits(value) for key, value in schema.items()}
    if changed.get("type") != "integer":
        return changed
    about = {key: changed.pop(key) for key in ("title", "description", "default") if key in changed}
    return about | {"anyOf": [changed, {"type": "string", "pattern": _GROUPED_DIGITS}]}
