"""`flashslm describe`: an architecture and what a token of it costs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from flashslm.cli.options import MODELS, JsonOption
from flashslm.cli.output import AS_IT_IS
from flashslm.config.file import load
from flashslm.models.operator_spec import OPERATOR_SPECS
from flashslm.steps.recipe_checks import problems

if TYPE_CHECKING:
    from flashslm.models.architecture import Architecture
    from flashslm.models.describe import Description


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=MODELS)(describe)


def describe(
    source: Annotated[
        str,
        typer.Argument(
            metavar="PRESET|FILE",
            help="A preset such as nemotron-flash-1b, an architecture.json, a directory with one or with an export's "
            "config.json, or a recipe (its latency reference).",
        ),
    ],
    context: Annotated[
        int | None,
        typer.Option(
            min=1, help="Tokens attended to, meta tokens included; default: 8192, or the model's positions if fewer."
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Sequences decoded together.")] = 1,
    device: Annotated[str, typer.Option(help="A GPU such as 'NVIDIA H200'; left out: the present device.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Say what an architecture costs: parameters, FLOP, bytes per decoded token, caches, the bandwidth floor."""
    from flashslm.export.hf_config import export_problems
    from flashslm.models.describe import describe as describe_architecture
    from flashslm.models.describe import find_device

    architecture = read_architecture(source)
    context = context or min(8192, architecture.max_position_embeddings)
    found = describe_architecture(architecture, context, batch, find_device(device), export_problems(architecture))
    found = found.model_copy(update={"assumptions": (*found.assumptions, *assumptions(source))})
    if as_json:
        print(found.model_dump_json())
    else:
        show_description(found)


def read_architecture(source: str) -> "Architecture":
    """The architecture behind a preset's name or a path. ValueError says what else could be given."""
    from flashslm.models.presets import PRESETS

    path = Path(source)
    if source in PRESETS:
        return PRESETS[source]
    if path.is_file() and path.suffix in (".yaml", ".yml"):
        return _recipe_reference(path)
    files = [path] if path.is_file() else [path / name for name in ("architecture.json", "config.json")]
    for file in filter(Path.is_file, files):
        return _stored_architecture(file)
    raise ValueError(
        f"'{source}' is neither a preset ({', '.join(PRESETS)}) nor a recipe, an architecture.json, or a directory "
        "with architecture.json or config.json in it"
    )


def assumptions(source: str) -> tuple[str, ...]:
    """What had to be assumed about a recipe's model."""
    path = Path(source)
    if not (path.is_file() and path.suffix in (".yaml", ".yml")):
        return ()
    data = load(path, checks=problems).data
    if data.tokenizer == "train":
        return ()
    unknown = f"the vocabulary of '{data.tokenizer}' is not known before it is fetched"
    return (f"{unknown}: data.vocab_size, {data.vocab_size}, is taken",)


def _recipe_reference(path: Path) -> "Architecture":
    from flashslm.models.architecture import build_architecture

    recipe = load(path, checks=problems)
    latency = recipe.latency
    return build_architecture(
        latency.reference_operators, latency.reference_width, recipe.model, recipe.data.vocab_size
    )


def _stored_architecture(file: Path) -> "Architecture":
    """From an architecture.json or the config.json of an export or of a published model."""
    from flashslm.export.files import read_object
    from flashslm.export.hf_config import architecture_from_config
    from flashslm.export.published import plain_config
    from flashslm.models.architecture import make_architecture

    try:
        facts = read_object(file)
        if {"uri", "sha256"} <= facts.keys():
            raise ValueError("it is the manifest of a stored object: give an export, or a checkpoint's directory")
        ours = "operators" in facts
        return make_architecture(**facts) if ours else architecture_from_config(plain_config(facts)[0])
    except ValueError as error:
        raise ValueError(f"'{file}' describes no architecture: {error}") from error


def show_description(found: "Description") -> None:
    sizes, counts = found.sizes, found.parameters
    heads = f"{sizes['num_heads']} heads of {sizes['head_dim']}, {sizes['num_kv_heads']} for keys and values"
    windowed = any(OPERATOR_SPECS[operator].keys == "window" for operator in found.operators)
    window = f", window {sizes['window']}" if windowed else ""
    kv = readable(found.kv_bytes_per_sequence, "B")
    floor = "no memory bandwidth is known for it: name a GPU with --device"
    if found.floor_ms_per_token is not None:
        floor = f"{found.floor_ms_per_token:.4g} ms/token by memory bandwidth"
    lines = {
        "operators": f"{found.notation}  ({len(found.operators)})",
        "sizes": f"width {sizes['hidden_size']}, FFN {sizes['ffn_size']}, {heads}",
        "": f"vocabulary {sizes['vocab_size']}, {sizes['num_meta_tokens']} meta tokens{window}",
        "parameters": f"{counts['total']:,}",
        **{f"  {kind}": f"{n:,}  ({n / counts['total']:.1%})" for kind, n in counts.items() if n and kind != "total"},
        "forward": f"{readable(found.flops_per_token, 'FLOP')} per token at context {found.context:,}",
        "decode moves": f"{readable(found.decode_bytes_per_token, 'B')} per step at batch {found.batch}, bfloat16",
        "KV cache": f"{readable(found.kv_bytes_per_token, 'B')} per token, {kv} per sequence",
        "states": f"{readable(found.state_bytes_per_sequence, 'B')} per sequence",
        "device": found.device,
        "floor": floor,
        "export": "yes" if found.exportable else "no: " + "; ".join(found.export_blockers),
    }
    if found.assumptions:
        lines["assumed"] = "; ".join(found.assumptions)
    width = max(map(len, lines))
    for name, text in lines.items():
        Console().print(f"{name:<{width}}  {text}", **AS_IT_IS)


def readable(value: float, unit: str) -> str:
    """A quantity with the decimal prefix that leaves at least one digit before the point: `33.55 MB`."""
    for power, prefix in ((9, "G"), (6, "M"), (3, "k")):
        if value >= 10**power:
            return f"{value / 10**power:.2f} {prefix}{unit}"
    return f"{value:.0f} {unit}"
