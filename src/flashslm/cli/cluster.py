"""`flashslm submit`: a recipe on a cluster."""

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from flashslm.cli.options import PIPELINES, JsonOption, PipelineOption
from flashslm.cli.output import AS_IT_IS, console, show
from flashslm.cli.recipe_argument import ConfigOption, Overrides, RecipeCommand, load_recipe
from flashslm.steps.recipe_checks import problems_before_a_run

if TYPE_CHECKING:
    from flashslm.launch.kfp.client import KfpClient
    from flashslm.launch.progress import StepRecord

HostOption = Annotated[
    str, typer.Option("--host", envvar="KF_PIPELINES_ENDPOINT", help="KFP's address, as in the browser.")
]
NamespaceOption = Annotated[str, typer.Option("--namespace", help="Yours, where KFP serves several users.")]
ExperimentOption = Annotated[
    str, typer.Option("--experiment", help="KFP's experiment; the recipe's name if not given.")
]

INTERRUPTED = 130  # as a shell reports a command that Ctrl-C ended


def register(app: typer.Typer) -> None:
    app.command(cls=RecipeCommand, rich_help_panel=PIPELINES)(submit)


def client(host: str, namespace: str) -> "KfpClient":
    from flashslm.launch.kfp.api import Connection
    from flashslm.launch.kfp.client import KfpClient

    connection = Connection(host)
    connection.require_answer()
    return KfpClient(connection, namespace)


def submit(
    config: ConfigOption,
    host: HostOption,
    overrides: Overrides = None,
    experiment: ExperimentOption = "",
    pipeline: PipelineOption = "design_and_train",
    wait: Annotated[bool, typer.Option("--wait", help="Follow the run; exit code 1 if it does not succeed.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run a recipe on a cluster: upload the pipeline unless KFP has this version of it, start a run."""
    from flashslm.launch.kfp.submit import submit as submit_recipe

    recipe = load_recipe(config, overrides, problems_before_a_run)
    kfp = client(host, recipe.platform.namespace)
    submission = submit_recipe(kfp, recipe, pipeline, experiment)
    console.print(f"run {submission.name}: {submission.url}", **AS_IT_IS)
    if not wait:
        show(submission.facts(), as_json)
        return
    state, facts = _follow(kfp, submission.run_id, as_json)
    show(submission.facts() | facts, as_json)
    raise typer.Exit(0 if state == "SUCCEEDED" else 1)


def counts(steps: "list[StepRecord]") -> dict[str, Any]:
    """How many steps a run had, were cached, and which failed."""
    from flashslm.launch.kfp.run_steps import cached_tasks

    failed = [step.label for step in steps if step.state == "FAILURE"]
    return {"num_steps": len(steps), "cached_steps": cached_tasks(steps), "failed_steps": failed}


def _follow(kfp: "KfpClient", run_id: str, quiet: bool) -> tuple[str, dict[str, Any]]:
    """The state of the run when it has ended. Ctrl-C ends the watching, not the run."""
    from flashslm.launch.kfp.watch import follow

    try:
        state, steps = follow(kfp, run_id, Console(stderr=True, quiet=quiet))
    except KeyboardInterrupt:
        console.print(
            f"the run continues: {kfp.run_url(run_id)}\n`flashslm runs cancel {run_id}` ends it",
            **AS_IT_IS,
        )
        raise typer.Exit(INTERRUPTED) from None
    return state, {"state": state} | counts(steps)
