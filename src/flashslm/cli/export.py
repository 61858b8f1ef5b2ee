"""Commands on exported directories."""

import json
from pathlib import Path
from typing import Annotated

import typer

from flashslm.cli.options import (
    HOME,
    MODEL_FORMS,
    MODELS,
    RUNS,
    HomeOption,
    JsonOption,
    KernelsOption,
    RunsOption,
    ServedWeightsOption,
    model_finder,
)
from flashslm.cli.output import AS_IT_IS, console, show


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=MODELS)(generate)
    app.command(rich_help_panel=MODELS)(verify_export)
    app.command("import", rich_help_panel=MODELS)(import_checkpoint)


def generate(  # noqa: PLR0913 - one parameter an option
    model: Annotated[str, typer.Option(help=MODEL_FORMS)],
    prompt: Annotated[str, typer.Option(help="The text to continue.")],
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 64,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option(min=0, help="0 is off.")] = 0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0)] = 1.0,
    seed: int = 0,
    stop: Annotated[
        list[str] | None, typer.Option(help="A text to end before; may be given several times.", show_default=False)
    ] = None,
    weights: ServedWeightsOption = None,
    kernel_settings: KernelsOption = None,
    runs: RunsOption = RUNS,
    home: HomeOption = HOME,
    as_json: JsonOption = False,
) -> None:
    """Continue a text with an exported model, by the project's own decode engine; the text is printed as it comes."""
    from flashslm.export.generate import generate_text
    from flashslm.inference.sampling import Sampling
    from flashslm.ops import kernels

    kernels.configure(kernels.read_setting(kernel_settings))

    def print_piece(piece: str) -> None:
        if not as_json:
            print(piece, end="", flush=True)

    directory = model_finder(runs, home).find(model).export()
    sampling = Sampling(temperature, top_k, top_p, seed)
    result = generate_text(
        *(directory, prompt, max_new_tokens), stops=stop or (), sampling=sampling, weights=weights, on_text=print_piece
    )
    if as_json:
        show(result, as_json)
    else:
        print()


def verify_export(
    directory: Annotated[Path, typer.Argument(help="A Hugging Face export or a TensorRT-LLM bundle.")],
    as_json: JsonOption = False,
) -> None:
    """Hold an exported directory to its contract; every problem is a line, and the exit code 1 if there is one."""
    from flashslm.export import verify

    problems = verify.verify_export(directory)
    checked = {} if problems else verify.count_checked(directory)
    if as_json:
        print(json.dumps({"directory": str(directory), "problems": [p._asdict() for p in problems], **checked}))
    elif problems:
        print("\n".join(map(str, problems)))
    else:
        counts = ", ".join(f"{count} {name}" for name, count in checked.items())
        print(f"{directory} keeps its contract; checked: {counts}")
    if problems:
        raise typer.Exit(1)


def import_checkpoint(
    directory: Annotated[Path, typer.Argument(help="An exported or a published Nemotron-Flash directory.")],
    output: Annotated[Path | None, typer.Option(help="Where to write it as a model to train and evaluate.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Read an exported or published model, say what it is, and write it as this project's own."""
    from flashslm.export.importing import import_model

    summary = import_model(directory, output)
    if as_json:
        show(summary.model_dump(), as_json)
        return
    show(summary.model_dump(exclude={"warnings"} | ({"output"} if output is None else set())), as_json)
    for warning in summary.warnings:
        console.print("[bold yellow]warning:[/]", end=" ")
        console.print(warning, **AS_IT_IS)
