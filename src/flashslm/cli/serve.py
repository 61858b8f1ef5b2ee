"""Serve an exported model on this machine."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flashslm.cli.options import (
    HOME,
    MODEL_FORMS,
    MODELS,
    RUNS,
    HomeOption,
    KernelsOption,
    RunsOption,
    ServedWeightsOption,
    model_finder,
)

if TYPE_CHECKING:
    from flashslm.serving.scheduler import BatchScheduler


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=MODELS)(serve)


def serve(  # noqa: PLR0913 - one parameter an option
    model: Annotated[str, typer.Argument(help=MODEL_FORMS)],
    host: Annotated[
        str, typer.Option(help="Another address than this machine's own needs FLASHSLM_API_KEY.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    name: Annotated[
        str, typer.Option(help="What clients call the model; not given: a directory's name, else MODEL.")
    ] = "",
    max_batch_size: Annotated[int, typer.Option(min=1, help="Requests that are decoded together.")] = 8,
    max_context: Annotated[
        int | None, typer.Option(help="Tokens of prompt and answer per request; not given: all that the model has.")
    ] = None,
    max_waiting: Annotated[int, typer.Option(min=0, help="Requests that may wait for a row; more get a 429.")] = 64,
    drain_s: Annotated[int, typer.Option(min=1, help="Seconds that requests may still take after SIGTERM.")] = 60,
    weights: ServedWeightsOption = None,
    kernel_settings: KernelsOption = None,
    runs: RunsOption = RUNS,
    home: HomeOption = HOME,
) -> None:
    """Serve an exported model by the API of OpenAI (completions, chat, streams), by this project's own decode engine.

    Set FLASHSLM_API_KEY to ask clients for a key.
    """
    from flashslm.export.hub import PREFIX
    from flashslm.ops import kernels
    from flashslm.serving.server import ServeOptions
    from flashslm.serving.server import serve as serve_directory

    kernels.configure(kernels.read_setting(kernel_settings))
    key = os.environ.get("FLASHSLM_API_KEY", "")
    directory = model_finder(runs, home).find(model).export()
    name = name or (directory.resolve().name if Path(model).is_dir() else model.removeprefix(PREFIX))
    options = ServeOptions(host, port, name, max_batch_size, max_context, max_waiting, drain_s, key, weights)
    serve_directory(directory, options, _say_ready)


def _say_ready(served: str, scheduler: "BatchScheduler") -> None:
    batch = scheduler.batch
    size = f"{len(scheduler.rows)} requests together, {batch.max_context} tokens each"
    print(f"serving {served} ({size}); SIGTERM or Ctrl-C ends it when its requests are finished", flush=True)
