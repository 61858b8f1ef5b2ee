"""The `flashslm` command: one sub-command per step and per launch; it parses, calls and prints."""

import os
import sys

import typer

from flashslm.cli import cluster, compare, describe, export, pipeline, steps
from flashslm.cli.bench import bench_app
from flashslm.cli.common import console
from flashslm.cli.config import config_app
from flashslm.cli.kernels import kernels_app
from flashslm.cli.models import models_app
from flashslm.cli.schedule import schedule_app
from flashslm.cli.stack import stack_app
from flashslm.cli.store import store_app
from flashslm.config.secret import without_secrets

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Design, train, evaluate and deploy latency-optimal hybrid small language models.",
)
pipeline.register(app)
steps.register(app)
cluster.register(app)
export.register(app)
describe.register(app)
app.add_typer(config_app, name="config")
compare.register(app)
app.add_typer(stack_app, name="stack")
app.add_typer(store_app, name="store")
app.add_typer(models_app, name="models")
app.add_typer(schedule_app, name="schedule")
app.add_typer(bench_app, name="bench")
app.add_typer(kernels_app, name="kernels")


def main() -> None:
    """Entry point: an error is one clear message and exit code 1; FLASHSLM_DEBUG=1 shows the traceback."""
    try:
        app()
    except (ValueError, RuntimeError, OSError) as error:
        if os.environ.get("FLASHSLM_DEBUG"):
            raise
        console.print("[bold red]error:[/]", end=" ")
        console.print(without_secrets(str(error)), markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)
