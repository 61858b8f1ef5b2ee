"""Commands on a cluster: submit a recipe, and see or end its runs."""

import json
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table

from flashslm.cli.common import ConfigOption, JsonOption, Overrides, PipelineOption, console, load_recipe, show
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
RunId = Annotated[str, typer.Argument(help="As `flashslm runs list` shows it.")]

INTERRUPTED = 130  # as a shell reports a command that Ctrl-C ended

runs_app = typer.Typer(no_args_is_help=True, help="Runs on a cluster.")


def register(app: typer.Typer) -> None:
    app.command()(submit)
    app.add_typer(runs_app, name="runs")


def client(host: str, namespace: str) -> "KfpClient":
    from flashslm.launch.kfp.api import Connection
    from flashslm.launch.kfp.client import KfpClient

    return KfpClient(Connection(host), namespace)


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
    console.print(f"run {submission.name}: {submission.url}", highlight=False, markup=False, soft_wrap=True)
    if not wait:
        show(submission.facts(), as_json)
        return
    state, facts = _follow(kfp, submission.run_id, as_json)
    show(submission.facts() | facts, as_json)
    raise typer.Exit(0 if state == "SUCCEEDED" else 1)


def _follow(kfp: "KfpClient", run_id: str, quiet: bool) -> tuple[str, dict[str, Any]]:
    """The state of the run when it has ended. Ctrl-C ends the watching, not the run."""
    from flashslm.launch.kfp.watch import follow

    try:
        state, steps = follow(kfp, run_id, Console(stderr=True, quiet=quiet))
    except KeyboardInterrupt:
        console.print(
            f"the run continues: {kfp.run_url(run_id)}\n`flashslm runs cancel {run_id}` ends it",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
        raise typer.Exit(INTERRUPTED) from None
    return state, {"state": state} | _counts(steps)


def _counts(steps: "list[StepRecord]") -> dict[str, Any]:
    from flashslm.launch.kfp.run_steps import cached_tasks

    failed = [step.label for step in steps if step.state == "FAILURE"]
    return {"num_steps": len(steps), "cached_steps": cached_tasks(steps), "failed_steps": failed}


@runs_app.command("list")
def runs_list(
    host: HostOption,
    namespace: NamespaceOption = "kubeflow",
    limit: Annotated[int, typer.Option(min=1, max=200, help="How many, the newest first.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """The newest runs and their states."""
    runs = [_facts(run) for run in client(host, namespace).latest_runs(limit)]
    if as_json:
        print(json.dumps({"runs": runs}))
        return
    whole = Column("run", no_wrap=True, min_width=36)  # other commands take it
    table = Table(whole, Column("name", overflow="fold"), "state", "created", box=None, pad_edge=False)
    for run in runs:
        table.add_row(run["run_id"], run["name"], run["state"], run["created"])
    Console().print(table)


@runs_app.command("show")
def runs_show(
    run_id: RunId, host: HostOption, namespace: NamespaceOption = "kubeflow", as_json: JsonOption = False
) -> None:
    """One run: its state, and every step with its result or the reason of its failure."""
    from flashslm.launch.display import table
    from flashslm.launch.kfp.run_steps import steps_of
    from flashslm.launch.kfp.watch import with_results

    kfp = client(host, namespace)
    run = kfp.run(run_id)
    steps = with_results(kfp, run_id, steps_of(kfp, run), {})
    facts = _facts(run) | {"url": kfp.run_url(run_id)} | _counts(steps)
    if as_json:
        print(json.dumps(facts | {"steps": [_step_facts(step) for step in steps]}))
        return
    show(facts, as_json)
    Console().print(table(steps))


def _step_facts(step: "StepRecord") -> dict[str, Any]:
    facts = {"step": step.label, "state": step.state, "cached": step.cached, "duration_s": step.duration_s}
    return facts | {"attempts": step.attempt, "result": step.summary, "pod": step.pod}


@runs_app.command("logs")
def runs_logs(
    run_id: RunId,
    step: Annotated[str, typer.Argument(help="A step as `flashslm runs show` lists it, or the name of all its tasks.")],
    host: HostOption,
    namespace: NamespaceOption = "kubeflow",
) -> None:
    """The whole log of a step: that of its newest attempt."""
    from flashslm.launch.kfp.logs import step_log
    from flashslm.launch.kfp.run_steps import steps_of

    kfp = client(host, namespace)
    steps = steps_of(kfp, kfp.run(run_id))
    found = [s for s in steps if step in (s.label, s.name)]
    if not found:
        raise ValueError(f"the run has no step '{step}'; it has: {', '.join(s.label for s in steps)}")
    for record in found:
        if len(found) > 1:
            print(f"== {record.label}")
        lines = step_log(kfp, run_id, record.pod)
        print("\n".join(lines) if lines else f"no log of {record.label} ({record.state.lower()}) is there")


@runs_app.command("cancel")
def runs_cancel(run_id: RunId, host: HostOption, namespace: NamespaceOption = "kubeflow") -> None:
    """End a run: its steps get SIGTERM."""
    client(host, namespace).cancel(run_id)
    console.print(f"{run_id} ends", highlight=False, markup=False)


def _facts(run: Any) -> dict[str, Any]:
    from flashslm.launch.kfp.run_steps import state_of

    facts = {
        "run_id": run.run_id,
        "name": run.display_name,
        "state": state_of(run),
        "created": shown_time(run.created_at),
        "finished": shown_time(run.finished_at),
    }
    return facts | ({"error": run.error.message} if run.error and run.error.message else {})


def shown_time(when: datetime | None) -> str:
    """In this machine's zone; KFP writes 1970 for what has not happened."""
    return when.astimezone().isoformat(sep=" ", timespec="seconds") if when and when.year > 1970 else ""
