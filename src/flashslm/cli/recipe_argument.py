"""A recipe and its overrides as a command's arguments, and the recipe that they give."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from flashslm.cli.output import AS_IT_IS, console
from flashslm.config import RunConfig
from flashslm.config.experiment import ExperimentRecipe
from flashslm.config.file import load, load_as
from flashslm.config.no_effect import without_effect
from flashslm.experiments.checks import problems as experiment_problems

ConfigOption = Annotated[
    Path,
    typer.Option("--config", help="The recipe, for example configs/demo.yaml; `--config` may be left out before it."),
]
Overrides = Annotated[list[str] | None, typer.Argument(help="Dotted overrides such as training.steps=50.")]


class RecipeCommand(TyperCommand):
    """A command with --config that takes a recipe's file as an argument too, wherever it stands."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not any(arg == "--config" or arg.startswith("--config=") for arg in args):
            place = next((place for place in range(len(args)) if self._is_recipe(args, place)), len(args))
            args = [*args[:place], *(["--config"] if place < len(args) else []), *args[place:]]
        return super().parse_args(ctx, args)

    def _is_recipe(self, args: list[str], place: int) -> bool:
        with_value = {name for option in self.params if not getattr(option, "is_flag", True) for name in option.opts}
        of_an_option = place > 0 and args[place - 1] in with_value
        return args[place].endswith((".yaml", ".yml")) and "=" not in args[place] and not of_an_option


def load_recipe(config: Path, overrides: list[str] | None, checks: Callable[[RunConfig], list[str]]) -> RunConfig:
    """The recipe, after a warning on stderr for each setting that it gives in vain. Raises ConfigError."""
    recipe = load(config, overrides, checks=checks)
    warn_of_no_effect(recipe)
    return recipe


def load_experiment(config: Path, overrides: list[str] | None) -> ExperimentRecipe:
    """An experiment's recipe by its own checks, after the same warnings. Raises ConfigError."""
    recipe = load_as(ExperimentRecipe, config, overrides, experiment_problems)
    warn_of_no_effect(recipe)
    return recipe


def warn_of_no_effect(recipe: RunConfig) -> None:
    """A warning on stderr for each setting that the recipe gives in vain."""
    for text in without_effect(recipe):
        console.print("[bold yellow]warning:[/]", end=" ")
        console.print(text, **AS_IT_IS)


def located_here(recipe: RunConfig, config: Path) -> RunConfig:
    """A recipe for promotions on this machine: the program of its hook, which is there, wherever the command is given.

    Raises ValueError where it is not there.
    """
    hook = recipe.gate.promotion_hook.located(config.parent)
    return recipe.model_copy(update={"gate": recipe.gate.model_copy(update={"promotion_hook": hook})})
