"""`flashslm kernels`: compile and tune a recipe's kernels ahead, for every later step on such a machine."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flashslm.cli.options import HOME, HomeOption
from flashslm.cli.output import console
from flashslm.cli.recipe_argument import ConfigOption, Overrides, RecipeCommand, load_experiment

if TYPE_CHECKING:
    from flashslm.config import RunConfig
    from flashslm.infra.storage.object_store import ObjectStore
    from flashslm.steps.warm_kernels import WarmUp

WORKERS = 4
WorkersOption = Annotated[
    int,
    typer.Option(
        "--workers",
        min=1,
        help="Processes that compile at once, each in its own memory of the GPU; what tunes runs alone.",
    ),
]

kernels_app = typer.Typer(no_args_is_help=True, help="Compiled kernels, shared by all steps on one kind of GPU.")


@kernels_app.callback()
def kernels() -> None:
    """Has one command so far; the callback keeps its name on the command line."""


@kernels_app.command(cls=RecipeCommand)
def warm(
    config: ConfigOption, overrides: Overrides = None, home: HomeOption = HOME, workers: WorkersOption = WORKERS
) -> None:
    """Run one training step of each operator and width of a recipe, and put the kernels into the object store.

    The recipe may be an experiment's. Kernels that could not be stored are an error, and exit code 1.
    """
    from flashslm.hardware import pick_device
    from flashslm.infra.stack.services import resolve_settings
    from flashslm.infra.storage.object_store import ObjectStore

    recipe, planned = _planned(config, overrides)
    if pick_device("auto") != "cuda":
        raise ValueError("this machine has no usable GPU, and kernels are tuned for one: run this where the steps run")
    settings = resolve_settings(home)
    _warm_all(recipe, planned, ObjectStore(settings), workers)


def _planned(config: Path, overrides: list[str] | None) -> "tuple[RunConfig, list[WarmUp]]":
    """The recipe, checked, and the steps that warm its kernels."""
    from flashslm.config.file import is_experiment, load
    from flashslm.experiments.warming import experiment_warm_ups
    from flashslm.steps.recipe_checks import problems
    from flashslm.steps.warm_kernels import warm_ups

    if is_experiment(config):
        experiment = load_experiment(config, overrides)
        return experiment, experiment_warm_ups(experiment)
    recipe = load(config, overrides, checks=problems)
    return recipe, warm_ups(recipe)


def _warm_all(recipe: "RunConfig", planned: "list[WarmUp]", store: "ObjectStore", workers: int) -> None:
    from flashslm.steps.kernel_object import required_kernels
    from flashslm.steps.warm_kernels import warm_all

    with required_kernels(store):
        for number, (warm_up, seconds) in enumerate(warm_all(recipe, planned, workers), start=1):
            a = warm_up.architecture
            what = f"{a.operators} {a.hidden_size} wide, {warm_up.batch} x {warm_up.sequence_length} tokens"
            console.print(f"{number}/{len(planned)}  {what}: {seconds:.1f} s", highlight=False)
