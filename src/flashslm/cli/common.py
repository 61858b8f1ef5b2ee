"""Options and output that the commands share."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperCommand

from flashslm.config import RunConfig, WeightFormat
from flashslm.config.file import load
from flashslm.config.no_effect import without_effect

console = Console(stderr=True)

ConfigOption = Annotated[
    Path,
    typer.Option("--config", help="The recipe, for example configs/demo.yaml; `--config` may be left out before it."),
]
Overrides = Annotated[list[str] | None, typer.Argument(help="Dotted overrides such as training.steps=50.")]
PipelineOption = Annotated[str, typer.Option("--pipeline", help="Directory name under pipelines/.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


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


def _home(context: typer.Context, option: typer.CallbackParam, given: Path) -> Path:
    """What is given, else the nearest home, looked for upwards as git looks for its own."""
    from flashslm.infra.stack.services import find_home

    source = context.get_parameter_source(str(option.name))
    return find_home() if source and source.name == "DEFAULT" else given


HomeOption = Annotated[
    Path,
    typer.Option(
        "--home",
        callback=_home,
        help="Where the embedded stack and caches live; not given: the nearest .flashslm here or above.",
    ),
]
ArtifactsOption = Annotated[Path, typer.Option("--artifacts", help="Where manifests of inputs and outputs live.")]
KernelsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--kernels", help="A backend to take, such as decode=torch, or default=torch; may be given several times."
    ),
]
ServedWeightsOption = Annotated[
    WeightFormat | None,
    typer.Option(help="int8: 8 bits per weight. Not given: what the directory's config.json says."),
]

# Headings of `flashslm --help`.
PIPELINES, STEPS, MODELS = "Pipelines and runs", "Single steps of the pipeline", "Models and measurements"
RECIPES, SERVICES = "Recipes", "Services of this machine"

HOME = Path(".flashslm")
ARTIFACTS = Path("artifacts")


def load_recipe(config: Path, overrides: list[str] | None, checks: Callable[[RunConfig], list[str]]) -> RunConfig:
    """The recipe, after a warning on stderr for each setting that it gives in vain. Raises ConfigError."""
    recipe = load(config, overrides, checks=checks)
    warn_of_no_effect(recipe)
    return recipe


def warn_of_no_effect(recipe: RunConfig) -> None:
    """A warning on stderr for each setting that the recipe gives in vain."""
    for text in without_effect(recipe):
        console.print("[bold yellow]warning:[/]", end=" ")
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def located_here(recipe: RunConfig, config: Path) -> RunConfig:
    """A recipe for promotions on this machine: the program of its hook, which is there, wherever the command is given.

    Raises ValueError where it is not there.
    """
    hook = recipe.gate.promotion_hook.located(config.parent)
    return recipe.model_copy(update={"gate": recipe.gate.model_copy(update={"promotion_hook": hook})})


def show(result: Any, as_json: bool) -> None:
    """One JSON object, or aligned lines for a person."""
    if as_json:
        print(json.dumps(result))
        return
    out = Console()
    width = max((len(key) for key in result), default=0)
    for key, value in result.items():
        shown = f"{value:.5g}" if isinstance(value, float) else value
        shown = ", ".join(map(str, value)) if isinstance(value, list) else shown
        out.print(f"{key:<{width}}  {shown}", highlight=False, markup=False, soft_wrap=True)
