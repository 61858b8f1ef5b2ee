"""Options that several commands have, and the headings under which `flashslm --help` lists commands."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flashslm.config import WeightFormat
from flashslm.infra.state_files import require_writable

if TYPE_CHECKING:
    from flashslm.steps.named_model import ModelFinder

PipelineOption = Annotated[str, typer.Option("--pipeline", help="Directory name under pipelines/.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


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


def writable_file(given: Path | None) -> Path | None:
    """What is given, once it is known that it can be written: before the work whose result it takes."""
    try:
        return given and require_writable(given)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


OutputOption = Annotated[
    Path | None,
    typer.Option("--output", callback=writable_file, help="Also write the JSON object to this file."),
]
RunsOption = Annotated[Path, typer.Option("--runs", help="Where runs of this machine leave their directories.")]
MODEL_FORMS = (
    "A run, export, manifest, NAME@VERSION of the registry, or hf://OWNER/NAME@REVISION, "
    "e.g. runs/latest/export/huggingface."
)
DatasetOption = Annotated[Path | None, typer.Option("--dataset", help="A prepared data set, or its manifest.")]
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


def model_finder(runs: Path, home: Path) -> "ModelFinder":
    """Finds what a command's MODEL means."""
    from flashslm.infra.stack.services import existing_settings
    from flashslm.steps.named_model import ModelFinder

    return ModelFinder(lambda: existing_settings(home), home / "trees", runs)


# Headings of `flashslm --help`.
PIPELINES, STEPS, MODELS = "Pipelines and runs", "Single steps of the pipeline", "Models and measurements"
RECIPES, SERVICES = "Recipes", "Services of this machine"

HOME = Path(".flashslm")
RUNS = Path("runs")
ARTIFACTS = Path("artifacts")
