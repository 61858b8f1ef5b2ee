"""Commands on exported directories."""

from pathlib import Path
from typing import Annotated

import typer

from flashslm.cli.common import JsonOption, show


def register(app: typer.Typer) -> None:
    app.command()(generate)


def generate(
    model: Annotated[Path, typer.Option(help="An exported directory, e.g. runs/latest/export/huggingface.")],
    prompt: Annotated[str, typer.Option(help="The text to continue.")],
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 64,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option(min=0, help="0 is off.")] = 0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0)] = 1.0,
    seed: int = 0,
    as_json: JsonOption = False,
) -> None:
    """Continue a text with an exported model, by the project's own decode engine."""
    from flashslm.export.generate import generate_text

    result = generate_text(model, prompt, max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    if as_json:
        show(result, as_json)
    else:
        print(prompt + result["text"])
