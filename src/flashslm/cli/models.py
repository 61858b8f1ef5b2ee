"""`flashslm models`: the model registry."""

import json

import typer
from rich.console import Console
from rich.table import Table

from flashslm.cli.common import HOME, HomeOption, JsonOption, console

models_app = typer.Typer(no_args_is_help=True, help="The model registry.")


@models_app.command("list")
def models_list(name: str = "flashslm", home: HomeOption = HOME, as_json: JsonOption = False) -> None:
    """List the versions of a model with their aliases and measures."""
    from flashslm.launch.single import resolve_settings
    from flashslm.platform import registry

    versions = [v.model_dump() for v in registry.list_versions(resolve_settings(home), name)]
    if as_json:
        print(json.dumps({"model": name, "versions": versions}, default=str))
        return
    table = Table(box=None, pad_edge=False)
    for column in ("version", "aliases", "perplexity", "ms/token", "parameters", "parent", "hook", "object"):
        table.add_column(column, overflow="fold", no_wrap=column not in ("hook", "object"))
    for v in versions:
        facts = v["facts"]
        numbers = (f"{facts['perplexity']:.3f}", f"{facts['latency_ms']:.3f}", f"{facts['parameters']:,}")
        table.add_row(v["version"], ", ".join(v["aliases"]), *numbers, v["lineage"]["parent"], v["hook"], v["uri"])
    Console().print(table if versions else f"no version of '{name}' is registered")


@models_app.command("promote")
def models_promote(version: str, name: str = "flashslm", home: HomeOption = HOME) -> None:
    """Make a version champion; the present champion becomes previous."""
    from flashslm.launch.single import resolve_settings
    from flashslm.platform import registry

    settings = resolve_settings(home)
    current = registry.champion(settings, name)
    registry.promote(settings, name, version, expected_champion=current.version if current else "")
    console.print(f"{name} version {version} is champion", highlight=False)


@models_app.command("rollback")
def models_rollback(name: str = "flashslm", home: HomeOption = HOME) -> None:
    """Make the previous champion champion again."""
    from flashslm.launch.single import resolve_settings
    from flashslm.platform import registry

    version = registry.rollback(resolve_settings(home), name)
    console.print(f"{name} version {version} is champion again", highlight=False)
