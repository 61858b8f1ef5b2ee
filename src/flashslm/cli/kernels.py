"""`flashslm kernels`: compile and tune a recipe's kernels ahead, for every later step on such a machine."""

import time
from typing import TYPE_CHECKING

import typer

from flashslm.cli.options import HOME, HomeOption
from flashslm.cli.output import console
from flashslm.cli.recipe_argument import ConfigOption, Overrides, RecipeCommand

if TYPE_CHECKING:
    from flashslm.infra.storage.object_store import ObjectStore

kernels_app = typer.Typer(no_args_is_help=True, help="Compiled kernels, shared by all steps on one kind of GPU.")


@kernels_app.callback()
def kernels() -> None:
    """Has one command so far; the callback keeps its name on the command line."""


@kernels_app.command(cls=RecipeCommand)
def warm(config: ConfigOption, overrides: Overrides = None, home: HomeOption = HOME) -> None:
    """Run one training step of each operator and width of a recipe, and put the kernels into the object store."""
    from flashslm.config.file import load
    from flashslm.hardware import pick_device
    from flashslm.infra.stack.services import resolve_settings
    from flashslm.infra.storage.object_store import ObjectStore
    from flashslm.steps.warm_kernels import warm_ups

    recipe = load(config, overrides or [])
    if pick_device("auto") != "cuda":
        raise ValueError("this machine has no usable GPU, and kernels are tuned for one: run this where the steps run")
    settings = resolve_settings(home)
    _warm_all(recipe, warm_ups(recipe), ObjectStore(settings))


def _warm_all(recipe: object, planned: list, store: "ObjectStore") -> None:
    from flashslm.steps.kernel_object import shared_kernels
    from flashslm.steps.warm_kernels import warm

    with shared_kernels(store):
        for number, warm_up in enumerate(planned, start=1):
            started = time.perf_counter()
            warm(recipe, warm_up)  # type: ignore[arg-type]
            a = warm_up.architecture
            what = f"{a.operators} {a.hidden_size} wide, {warm_up.batch} x {warm_up.sequence_length} tokens"
            console.print(f"{number}/{len(planned)}  {what}: {time.perf_counter() - started:.1f} s", highlight=False)
