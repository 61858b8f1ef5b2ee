"""`flashslm experiment`: named models under the same training, compared seed by seed."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flashslm.cli.options import HOME, MODELS, HomeOption, JsonOption
from flashslm.cli.output import AS_IT_IS, console
from flashslm.cli.recipe_argument import ConfigOption, Overrides, RecipeCommand, load_experiment

if TYPE_CHECKING:
    from flashslm.infra.settings import Settings


def register(app: typer.Typer) -> None:
    app.command(cls=RecipeCommand, rich_help_panel=MODELS)(experiment)


def experiment(
    config: ConfigOption,
    overrides: Overrides = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Cells, record and table; not given: experiments/NAME. An experiment that is there is continued."
        ),
    ] = None,
    dataset: Annotated[Path | None, typer.Option(help="A prepared data set, in place of the recipe's text.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that train side by side on this device.")] = 1,
    home: HomeOption = HOME,
    as_json: JsonOption = False,
) -> None:
    """Train models x variants x seeds, and compare them with intervals; a second start continues.

    The runs go to MLflow if the environment or a running stack names one.
    """
    from flashslm.experiments.experiment import RECORD_FILE, TABLE_FILE, Experiment
    from flashslm.infra.process.interrupts import terminable
    from flashslm.launch.processes import exclusive

    recipe = load_experiment(config, overrides)
    directory = output or Path("experiments") / recipe.name
    settings = _tracking(home)
    with terminable(), exclusive(directory / "lock", "--output"), _compiled_kernels(settings):
        Experiment(recipe, directory, workers, settings, _say).run(dataset)
    _say(f"record and table: {directory / RECORD_FILE}, {directory / TABLE_FILE}")
    shown = RECORD_FILE if as_json else TABLE_FILE
    print((directory / shown).read_text(encoding="utf-8"))


def _tracking(home: Path) -> "Settings | None":
    """Where MLflow is; None, and a sentence that says so, where no service runs."""
    from flashslm.infra.stack.daemons import StackError
    from flashslm.infra.stack.services import existing_settings

    try:
        return existing_settings(home)
    except StackError as error:
        _say(f"not tracked in MLflow: {error}")
        return None


def _compiled_kernels(settings: "Settings | None") -> AbstractContextManager[None]:
    """Fetched from the object store, and stored there, where there is one."""
    from flashslm.infra.storage.object_store import ObjectStore
    from flashslm.steps.kernel_object import shared_kernels

    return shared_kernels(ObjectStore(settings)) if settings else nullcontext()


def _say(sentence: str) -> None:
    console.print(sentence, **AS_IT_IS)
