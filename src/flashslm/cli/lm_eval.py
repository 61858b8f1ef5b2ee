"""`flashslm lm-eval`: tasks of lm-evaluation-harness on one model."""

import json
from typing import Annotated, Any, Literal

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
    KernelsOption,
    RunsOption,
    ServedWeightsOption,
    model_finder,
)
from flashslm.config import EvaluationConfig

COLUMNS = ("task", "version", "shots", "samples", "metric", "value", "stderr")


def register(app: typer.Typer) -> None:
    app.command("lm-eval", rich_help_panel=MODELS)(lm_eval)


def lm_eval(  # noqa: PLR0913 - one parameter an option
    model: Annotated[
        str, typer.Argument(help="A run, checkpoint, export, manifest, NAME@VERSION, or hf://OWNER/NAME@REVISION.")
    ],
    tasks: Annotated[list[str], typer.Argument(help="Tasks by name, by a YAML file, or preset:NAME.")],
    task_data: Annotated[str, typer.Option(help="A directory of evaluation sets in place of the hub.")] = "",
    limit: Annotated[int, typer.Option(min=0, help="Documents per task; 0: all.")] = 0,
    run_generated_code: Annotated[
        bool, typer.Option(help="Tasks may run the programs that the model writes, on this machine, as this user.")
    ] = False,
    dataset: DatasetOption = None,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"], typer.Option(help="auto: bfloat16 on CUDA, float32 on a CPU.")
    ] = "auto",
    weights: ServedWeightsOption = None,
    kernel_settings: KernelsOption = None,
    runs: RunsOption = RUNS,
    home: HomeOption = HOME,
    as_json: JsonOption = False,
) -> None:
    """Evaluate a model on tasks of lm-evaluation-harness, without a recipe; a checkpoint also needs --dataset."""
    from flashslm.ops import kernels
    from flashslm.steps.task_evaluation import evaluate_tasks

    kernels.configure(kernels.read_setting(kernel_settings))
    asked = {"lm_eval_tasks": tasks, "lm_eval_limit": limit, "task_data": task_data}
    evaluation = EvaluationConfig.model_validate(asked | {"run_generated_code": run_generated_code})
    finder = model_finder(runs, home)
    found = finder.find(model)
    directory = finder.dataset(dataset) if dataset else None
    results = evaluate_tasks(found, evaluation, directory, dtype, weights)
    if as_json:
        print(json.dumps({"model": model, "limit": limit, "tasks": results}))
    else:
        _show(results)


def _show(results: dict[str, dict[str, Any]]) -> None:
    """As the harness shows them."""
    from flashslm.evaluation.task_metrics import task_rows

    table = Table(box=None, pad_edge=False)
    for column in COLUMNS:
        table.add_column(column, overflow="fold", justify="left" if column in ("task", "metric") else "right")
    for row in task_rows(results):
        error = "" if row["error"] is None else f"{row['error']:.4f}"
        asked = (row["version"], row["shots"], row["samples"])
        table.add_row(row["task"], *asked, row["metric"], f"{row['value']:.4f}", error)
    Console().print(table)
