"""`flashslm config`: what a recipe may say, and what is wrong or idle in one."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from flashslm.cli.options import JsonOption
from flashslm.cli.output import AS_IT_IS
from flashslm.cli.recipe_argument import Overrides, load_experiment, load_recipe
from flashslm.config import RunConfig
from flashslm.config.file import dump, is_experiment
from flashslm.config.reference import Setting, differences, json_schema, near_settings, page, read_by, settings
from flashslm.steps.recipe_checks import problems

config_app = typer.Typer(no_args_is_help=True, help="What a recipe may say, and what is wrong in one.")
out = Console()


@config_app.command("explain")
def explain(
    key: Annotated[str, typer.Argument(help="A setting such as training.steps, or a section.")] = "",
    config: Annotated[Path | None, typer.Option("--config", help="Also show what this recipe says.")] = None,
) -> None:
    """Say what a setting means, what it may be, its default, and which steps it runs again."""
    every = list(settings())
    found = [s for s in every if s.key == key]
    inside = [s for s in every if s.key.startswith(f"{key}.") or not key]
    if found:
        _explain_one(found[0], config)
    elif inside:
        _list(inside)
    else:
        near = near_settings(key)
        hint = f"did you mean {' or '.join(near)}?" if near else "`flashslm config explain` lists them all"
        raise ValueError(f"'{key}' is neither a setting nor a section of a recipe: {hint}")


@config_app.command("check")
def check(
    config: Annotated[Path, typer.Argument(help="The recipe.")],
    overrides: Overrides = None,
    as_json: JsonOption = False,
) -> None:
    """Name every problem of a recipe, what has no effect in it, and how it differs from the defaults."""
    recipe = _load(config, overrides)
    changed = differences(recipe)
    if as_json:
        print(json.dumps({"name": recipe.name, "differences": changed}))
        return
    out.print(f"{config} can run; it differs from the defaults in {len(changed)} settings:", **AS_IT_IS)
    for key, value in changed.items():
        out.print(f"  {key} = {json.dumps(value)}", **AS_IT_IS)


@config_app.command("show")
def show_resolved(config: Annotated[Path, typer.Argument(help="The recipe.")], overrides: Overrides = None) -> None:
    """Print a recipe with every default written out."""
    print(dump(_load(config, overrides)), end="")


@config_app.command("schema")
def schema() -> None:
    """Print the JSON schema by which editors complete and check recipes."""
    print(json.dumps(json_schema(), indent=1, ensure_ascii=False))


@config_app.command("reference")
def reference() -> None:
    """Print the reference of all settings as Markdown."""
    print(page())


def _load(config: Path, overrides: list[str] | None) -> RunConfig:
    """A run's recipe or an experiment's, each by its own checks, after warnings of what it gives in vain."""
    return load_experiment(config, overrides) if is_experiment(config) else load_recipe(config, overrides, problems)


def _explain_one(setting: Setting, config: Path | None) -> None:
    lines: dict[str, Any] = {
        "allowed": setting.allowed,
        "default": setting.default or "none: it is required",
        "read by": ", ".join(read_by(setting.section)) or "the launchers; no step runs again",
    }
    if config:
        value: Any = _load(config, None).model_dump(mode="json")
        for part in setting.key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        lines[str(config)] = json.dumps(value)
    out.print(f"{setting.key}: {setting.description}", **AS_IT_IS)
    width = max(map(len, lines))
    for name, text in lines.items():
        out.print(f"  {name:<{width}}  {text}", **AS_IT_IS)


def _list(entries: list[Setting]) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("setting", no_wrap=True)
    table.add_column("default", overflow="fold", max_width=24)
    table.add_column("meaning", overflow="fold")
    for setting in entries:
        table.add_row(setting.key, setting.default, setting.description)
    out.print(table, markup=False)
