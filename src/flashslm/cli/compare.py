"""`flashslm compare`: two models beside each other, with paired differences."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from flashslm.cli.options import (
    HOME,
    MODELS,
    RUNS,
    DatasetOption,
    HomeOption,
    JsonOption,
    RunsOption,
    model_finder,
    writable_file,
)
from flashslm.cli.output import AS_IT_IS, console, natural_width
from flashslm.cli.recipe_argument import Overrides
from flashslm.config.file import load
from flashslm.steps.recipe_checks import problems_before_a_run_here

if TYPE_CHECKING:
    from flashslm.steps.compare_models import ModelComparison

Model = Annotated[
    str,
    typer.Argument(
        help="A run, checkpoint, export, manifest, NAME@VERSION of the registry, or hf://OWNER/NAME@REVISION."
    ),
]


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=MODELS)(compare)


def compare(  # noqa: PLR0913 - one parameter an option
    first: Model,
    second: Model,
    overrides: Overrides = None,
    config: Annotated[Path | None, typer.Option(help="Evaluate both by this recipe, on --dataset.")] = None,
    dataset: DatasetOption = None,
    html: Annotated[Path | None, typer.Option(callback=writable_file, help="Also write the table as a page.")] = None,
    runs: RunsOption = RUNS,
    home: HomeOption = HOME,
    as_json: JsonOption = False,
) -> None:
    """Compare two models, metric by metric, paired on the same documents and questions.

    Without --config their stored evaluations are compared.
    """
    from flashslm.steps.compare_models import compare_models, finite

    if (config is None) != (dataset is None):
        raise ValueError("--config and --dataset belong together: the recipe says how, the data set on what")
    candidates = _candidates([first, second], overrides, config, dataset, runs, home)
    comparison = compare_models(*candidates)
    values = comparison.model_dump(mode="json")
    if html:
        from flashslm.reporting.comparison import render_comparison

        html.parent.mkdir(parents=True, exist_ok=True)
        html.write_text(render_comparison(values), encoding="utf-8")
        console.print(f"the table is in {html}", **AS_IT_IS)
    if as_json:
        print(json.dumps(finite(values)))
    else:
        _show(comparison, values)


def _candidates(
    texts: list[str], overrides: list[str] | None, config: Path | None, dataset: Path | None, runs: Path, home: Path
) -> list[Any]:
    from flashslm.steps.compare_models import evaluate_candidate

    finder = model_finder(runs, home)
    found = [finder.find(text) for text in texts]
    if config is None or dataset is None:
        return found
    recipe = load(config, overrides, checks=problems_before_a_run_here)
    directory = finder.dataset(dataset)
    made = []
    for candidate in found:
        console.print(f"evaluating {candidate.name} …", **AS_IT_IS)
        made.append(evaluate_candidate(candidate, recipe, directory))
    return made


def _narrow(rows: list[dict[str, str]]) -> Table:
    """Two lines per metric, for a terminal in which the columns would break inside of words."""
    table = Table("metric, and what the second is", box=None, pad_edge=False)
    for row in rows:
        shown = f"  {row['first']} and {row['second']}, difference {row['difference']}"
        interval = f", 95 % interval {row['95 % interval']}, p {row['p']}" if row["95 % interval"] else ""
        table.add_row(": ".join(filter(None, (row["metric"], row["the second is"]))) + f"\n{shown}{interval}")
    return table


def _show(comparison: "ModelComparison", values: dict[str, Any]) -> None:
    from flashslm.reporting.comparison import COLUMNS, UNPAIRED, comparison_rows

    out = Console()
    for name, text in (("first", comparison.first), ("second", comparison.second)):
        out.print(f"{name:<6}  {text}", **AS_IT_IS)
    table = Table(box=None, pad_edge=False)
    for column in COLUMNS:
        table.add_column(column, overflow="fold", no_wrap=column in ("metric", "the second is"))
    for row in comparison_rows(values):
        table.add_row(*(row[column] for column in COLUMNS))
    if natural_width(table).maximum > out.width:
        table = _narrow(comparison_rows(values))
    out.print(table)
    for what, names in ((UNPAIRED, comparison.unpaired), ("of one only", comparison.alone)):
        if names:
            out.print(f"{what}: {', '.join(names)}", **AS_IT_IS)
