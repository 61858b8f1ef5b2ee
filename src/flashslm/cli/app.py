"""The `flashslm` command: one sub-command per step and per launch; it parses, calls and prints."""

import os
import sys
from typing import Annotated, NoReturn

import typer

from flashslm import __version__
from flashslm.cli import cluster, compare, describe, experiment, export, lm_eval, pipeline, runs, serve, steps
from flashslm.cli.bench import bench_app
from flashslm.cli.config import config_app
from flashslm.cli.data import data_app
from flashslm.cli.kernels import kernels_app
from flashslm.cli.missing_package import install_hint
from flashslm.cli.models import models_app
from flashslm.cli.options import MODELS, PIPELINES, RECIPES, SERVICES
from flashslm.cli.output import AS_IT_IS, console
from flashslm.cli.schedule import schedule_app
from flashslm.cli.stack import stack_app
from flashslm.cli.store import store_app
from flashslm.config.secret import without_secrets
from flashslm.infra.process.collection import end_without_collection
from flashslm.infra.process.interrupts import Terminated

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
pipeline.register(app)
cluster.register(app)
runs.register(app)
app.add_typer(schedule_app, name="schedule", rich_help_panel=PIPELINES)
app.add_typer(config_app, name="config", rich_help_panel=RECIPES)
describe.register(app)
export.register(app)
serve.register(app)
compare.register(app)
lm_eval.register(app)
experiment.register(app)
app.add_typer(models_app, name="models", rich_help_panel=MODELS)
app.add_typer(bench_app, name="bench", rich_help_panel=MODELS)
app.add_typer(data_app, name="data", rich_help_panel=MODELS)
app.add_typer(kernels_app, name="kernels", rich_help_panel=SERVICES)
app.add_typer(stack_app, name="stack", rich_help_panel=SERVICES)
app.add_typer(store_app, name="store", rich_help_panel=SERVICES)
steps.register(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"flashslm {__version__}")
        raise typer.Exit()


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Design, train, evaluate and deploy latency-optimal hybrid small language models."""


def main() -> None:
    """Entry point: an error is one clear message and exit code 1; FLASHSLM_DEBUG=1 shows the traceback. What a signal
    ended says what it kept, with exit code 128 + signal.
    """
    end_without_collection()
    try:
        app()
    except ModuleNotFoundError as error:
        hint = install_hint(error.name or "")
        if hint is None or os.environ.get("FLASHSLM_DEBUG"):
            raise
        _end(hint)
    except Terminated as error:
        goes_on = "continues there" if error.kept else "begins again what is not finished"
        console.print(f"{error}: the same command {goes_on}", **AS_IT_IS)
        raise
    except (ValueError, RuntimeError, OSError) as error:
        if os.environ.get("FLASHSLM_DEBUG"):
            raise
        _end(without_secrets(str(error)))


def _end(message: str) -> NoReturn:
    console.print("[bold red]error:[/]", end=" ")
    console.print(message, **AS_IT_IS)
    sys.exit(1)
