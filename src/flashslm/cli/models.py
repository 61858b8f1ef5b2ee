"""`flashslm models`: the model registry."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import typer
from rich.console import Console

from flashslm.cli.options import HOME, HomeOption, JsonOption
from flashslm.cli.output import AS_IT_IS, console, print_whole, show
from flashslm.cli.recipe_argument import ConfigOption, Overrides, RecipeCommand, load_recipe, located_here
from flashslm.config import GateConfig, PromotionHook
from flashslm.config.file import load
from flashslm.steps.recipe_checks import problems

if TYPE_CHECKING:
    from flashslm.infra.settings import Settings

NameOption = Annotated[str, typer.Option("--name", help="The model; the recipe's gate.model_name if not given.")]
HookOption = Annotated[Path | None, typer.Option("--config", help="The recipe whose gate.promotion_hook is called.")]
NoHookOption = Annotated[bool, typer.Option("--no-hook", help="Skip the promotion hook.")]

models_app = typer.Typer(no_args_is_help=True, help="The model registry.")


@models_app.command("list")
def models_list(name: str = "flashslm", home: HomeOption = HOME, as_json: JsonOption = False) -> None:
    """List the versions of a model with their aliases and measures."""
    from flashslm.infra.registry import model_registry
    from flashslm.infra.stack.services import existing_settings

    settings = existing_settings(home)
    versions = model_registry.list_versions(settings, name)
    if as_json:
        print(json.dumps({"model": name, "versions": [v.model_dump() for v in versions]}))
        return
    if not versions:
        known = ", ".join(model_registry.list_models(settings)) or "none"
        console.print(f"no version of '{name}' is registered; --name takes: {known}", **AS_IT_IS)
        return
    from flashslm.cli.model_tables import version_tables

    out = Console()
    for group in version_tables(versions):
        out.print(group.data, **AS_IT_IS)
        print_whole(group.table)
        for line in group.origins:
            out.print(line, style="dim", **AS_IT_IS)


@models_app.command("pull")
def models_pull(
    model: Annotated[str, typer.Argument(help="NAME@champion, NAME@7 (alias or version), or NAME: its champion.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="A new directory, or one that holds this version.")],
    home: HomeOption = HOME,
    as_json: JsonOption = False,
) -> None:
    """Copy a registered model's files into a directory; every one is verified by its sha256."""
    from flashslm.infra.registry import model_registry
    from flashslm.infra.stack.services import existing_settings
    from flashslm.infra.storage.object_store import ObjectStore
    from flashslm.infra.storage.tree import holds

    settings = existing_settings(home)
    name, _, wanted = model.rpartition("@") if "@" in model else (model, "", "champion")
    version = model_registry.find(settings, name, wanted)
    if output.is_dir() and any(output.iterdir()) and not holds(output, version.manifest.sha256):
        raise ValueError(f"'{output}' holds other files, or another version: give a new directory")
    directory = ObjectStore(settings).get_tree(version.manifest, output)
    facts = {"model": name, "version": version.version, "aliases": ", ".join(version.aliases)}
    show(facts | {"directory": str(directory), "sha256": version.manifest.sha256}, as_json)


@models_app.command("register", cls=RecipeCommand)
def models_register(  # noqa: PLR0913 - one parameter an option
    directory: Annotated[Path, typer.Argument(help="An exported or a published Nemotron-Flash directory.")],
    config: ConfigOption,
    overrides: Overrides = None,
    name: Annotated[str, typer.Option(help="The model; default: the recipe's gate.model_name.")] = "",
    alias: Annotated[Literal["challenger", "champion"], typer.Option()] = "challenger",
    replaces: Annotated[str, typer.Option(help="The version whose place as champion it takes; default: none.")] = "",
    foreign_code: Annotated[
        bool, typer.Option("--foreign-code", help="Store Python files that are not this project's, too.")
    ] = False,
    home: HomeOption = HOME,
    as_json: JsonOption = False,
) -> None:
    """Register a model directory, measured by the recipe on its data, so that retraining can start from it."""
    from flashslm.infra.stack import embedded_stack
    from flashslm.infra.stack.services import existing_settings
    from flashslm.steps.register_imported import register_imported

    recipe = located_here(load_recipe(config, overrides, problems), config)
    embedded_stack.use_home(home)
    found = register_imported(existing_settings(home), directory, recipe, name, alias, replaces, foreign_code)
    show(found, as_json)
    if found["hook"].startswith("failed"):
        _say_how_to_repeat(found["version"])


@models_app.command("promote")
def models_promote(
    version: Annotated[str, typer.Argument(help="A number, or an alias such as challenger.")],
    name: NameOption = "",
    config: HookOption = None,
    no_hook: NoHookOption = False,
    home: HomeOption = HOME,
) -> None:
    """Make a version champion; the present champion becomes previous."""
    from flashslm.infra.registry import model_registry

    settings, gate, notify = _promoter(home, name, config, no_hook)
    former = model_registry.champion_version(settings, gate.model_name)
    version = model_registry.promote(settings, gate.model_name, version, expected_champion=former, notify=notify)
    if former == version and notify:  # it was champion already: only the hook is called again
        model_registry.announce_again(settings, gate.model_name)
    console.print(f"{gate.model_name} version {version} is champion", **AS_IT_IS)
    _call_hook(settings, gate, version)


@models_app.command("rollback")
def models_rollback(
    name: NameOption = "",
    config: HookOption = None,
    no_hook: NoHookOption = False,
    home: HomeOption = HOME,
) -> None:
    """Make the previous champion champion again; repeated, it changes nothing (`promote` undoes it)."""
    from flashslm.infra.registry import model_registry

    settings, gate, notify = _promoter(home, name, config, no_hook)
    version = model_registry.rollback(settings, gate.model_name, notify)
    console.print(f"{gate.model_name} version {version} is champion again", **AS_IT_IS)
    _call_hook(settings, gate, version)


@models_app.command("notify", cls=RecipeCommand)
def models_notify(config: ConfigOption, name: NameOption = "", home: HomeOption = HOME) -> None:
    """Call the recipe's hook for promotions that it has not heard of, because a process was killed or a call failed."""
    settings, gate, notify = _promoter(home, name, config, no_hook=False)
    if not notify:
        raise ValueError(f"'{config}' has no gate.promotion_hook: give the recipe that names it")
    if not _call_hook(settings, gate, "VERSION"):
        console.print(f"nothing is pending for {gate.model_name}", **AS_IT_IS)


class _Promoter(NamedTuple):
    """Whose champion changes, and whether a hook is to hear of it."""

    settings: "Settings"
    gate: GateConfig
    notify: bool


def _promoter(home: Path, name: str, config: Path | None, no_hook: bool) -> _Promoter:
    """For the registry of this home."""
    from flashslm.infra.registry.promotion import is_heard
    from flashslm.infra.stack.services import existing_settings

    settings = existing_settings(home)
    gate = _gate(settings, name, config, no_hook)
    return _Promoter(settings, gate, is_heard(gate.promotion_hook))


def _gate(settings: "Settings", name: str, config: Path | None, no_hook: bool) -> GateConfig:
    """The model that is meant, and the hook of its promotions: the recipe's, or none if the model has none."""
    from flashslm.infra.registry.promotion import refuse_silence

    gate = located_here(load(config, checks=problems), config).gate if config else GateConfig()
    if name:
        gate = gate.model_copy(update={"model_name": name})
    if no_hook:
        return gate.model_copy(update={"promotion_hook": PromotionHook()})
    if not config:
        refuse_silence(settings, gate.model_name)
    return gate


def _call_hook(settings: "Settings", gate: GateConfig, version: str) -> str:
    """Deliver what is pending and print what came of it; a failure is exit code 1, though the champion stays."""
    from flashslm.infra.registry.promotion import deliver_pending

    outcome = deliver_pending(settings, gate.model_name, gate.promotion_hook)
    if outcome:
        console.print(f"hook {outcome}", **AS_IT_IS)
    if outcome.startswith("failed"):
        _say_how_to_repeat(version)
    return outcome


def _say_how_to_repeat(version: str) -> None:
    """After a hook that failed, exit code 1."""
    console.print(f"`flashslm models promote {version}` with the same options calls it again", **AS_IT_IS)
    raise typer.Exit(1)
