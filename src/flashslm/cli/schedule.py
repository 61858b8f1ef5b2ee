"""`flashslm schedule`: pipelines at fixed times, on a cluster (--host) or by the local scheduler (`schedule run`)."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table

from flashslm.cli.cluster import ExperimentOption, NamespaceOption, client
from flashslm.cli.options import HOME, HomeOption, JsonOption, PipelineOption
from flashslm.cli.output import AS_IT_IS, console, show
from flashslm.cli.recipe_argument import ConfigOption, Overrides, RecipeCommand, load_recipe, located_here
from flashslm.cli.runs import shown_time
from flashslm.config.paths import with_absolute_paths
from flashslm.steps.recipe_checks import problems_before_a_run

if TYPE_CHECKING:
    from flashslm.launch.schedule.records import Schedules

NameArgument = Annotated[str, typer.Argument(help="The schedule's name.")]
OptionalHostOption = Annotated[str, typer.Option("--host", help="KFP's address; without it: the local scheduler.")]
CronOption = Annotated[str, typer.Option("--cron", help='"minute hour day month weekday", for example "0 2 * * 1".')]
ZoneOption = Annotated[str, typer.Option("--time-zone", help="An IANA name such as Europe/Berlin.")]

schedule_app = typer.Typer(
    no_args_is_help=True,
    help="Runs at fixed times: on a cluster with --host, else by `flashslm schedule run` on this machine.",
)


def local_schedules(home: Path) -> "Schedules":
    from flashslm.infra.stack.services import existing_settings
    from flashslm.infra.storage.object_store import ObjectStore
    from flashslm.launch.schedule.records import Schedules

    return Schedules(ObjectStore(existing_settings(home)))


@schedule_app.command("create", cls=RecipeCommand)
def create(  # noqa: PLR0913 - one parameter an option
    name: NameArgument,
    config: ConfigOption,
    cron: CronOption,
    overrides: Overrides = None,
    time_zone: ZoneOption = "UTC",
    pipeline: PipelineOption = "retraining",
    host: OptionalHostOption = "",
    experiment: ExperimentOption = "",
    home: HomeOption = HOME,
    as_json: JsonOption = False,
) -> None:
    """Run a pipeline at fixed times: its latest version, one run at a time, missed times are not caught up."""
    from flashslm.launch.compiling import load_pipeline, project_root
    from flashslm.launch.kfp import recurring_runs
    from flashslm.launch.schedule import kept_hook
    from flashslm.launch.schedule.cron import Cron
    from flashslm.launch.schedule.records import Schedule, check_name

    check_name(name)
    if experiment and not host:
        raise ValueError("--experiment is KFP's: it needs --host; MLflow's experiment is the environment's")
    times = Cron.parse(cron, time_zone)
    recipe = load_recipe(config, overrides, problems_before_a_run)
    load_pipeline(pipeline, project_root())  # a name that is wrong is an error now, not at two in the morning
    now_s = time.time()
    if host:
        kfp = client(host, recipe.platform.namespace)
        identity = recurring_runs.create(kfp, name, recipe, pipeline, times, experiment).recurring_run_id
        made = {"schedule_id": identity, "url": f"{kfp.connection.host}/#/recurringrun/details/{identity}"}
    else:
        values = {"name": name, "pipeline": pipeline, "cron": cron, "time_zone": time_zone, "settled_s": now_s}
        schedules = local_schedules(home)
        own = kept_hook.apart(home.resolve(), name, with_absolute_paths(located_here(recipe, config)))
        schedules.create(Schedule.model_validate(values | own))
        made = {"fires": "while `flashslm schedule run` is running"}
    show({"name": name, "pipeline": pipeline, "next": times.shown(times.next_after(now_s))} | made, as_json)


@schedule_app.command("list")
def list_command(
    host: OptionalHostOption = "",
    namespace: NamespaceOption = "kubeflow",
    home: HomeOption = HOME,
    as_json: JsonOption = False,
) -> None:
    """Every schedule: when, whether it is paused, how the last run ended."""
    rows = _on_cluster(host, namespace) if host else _here(home)
    if as_json:
        print(json.dumps({"schedules": rows}))
        return
    if not rows:
        Console().print("no schedules: `flashslm schedule create` makes one", highlight=False)
        return
    columns = ("name", "cron", "state", "next", "last")
    table = Table(*columns[:-1], Column("last", overflow="fold"), box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(str(row.get(column, "")) for column in columns))
    Console().print(table)


def _on_cluster(host: str, namespace: str) -> list[dict[str, Any]]:
    from flashslm.launch.kfp.recurring_runs import times_of
    from flashslm.launch.kfp.run_steps import state_of

    kfp, rows = client(host, namespace), []
    for schedule in kfp.schedules():
        times, enabled, run = times_of(schedule), schedule.status != "DISABLED", kfp.latest_run_of(schedule)
        row = {"name": schedule.display_name, "schedule_id": schedule.recurring_run_id}
        row |= {"state": "on" if enabled else "paused", "about": schedule.description or ""}
        row |= {"cron": schedule.trigger.cron_schedule.cron if schedule.trigger else ""}
        row |= {"next": times.shown(times.next_after(time.time())) if times and enabled else "", "last": ""}
        if run:
            row["last"] = f"{shown_time(run.created_at)} {state_of(run).lower()} {kfp.run_url(run.run_id)}"
        rows.append(row)
    return rows


def _here(home: Path) -> list[dict[str, Any]]:
    rows = []
    for schedule in local_schedules(home).all():
        times, last = schedule.times, schedule.last
        state = ("on" if schedule.enabled else "paused") + (", running" if schedule.goes_on(time.time()) else "")
        following = times.shown(times.next_after(time.time())) if schedule.enabled else ""
        ended = f"{times.shown(last.due_s)} {last.state.lower()} {last.detail}".strip() if last else ""
        row = {"name": schedule.name, "pipeline": schedule.pipeline, "state": state, "next": following, "last": ended}
        rows.append(row | {"cron": f"{schedule.cron} {schedule.time_zone}"})
    return rows


@schedule_app.command("pause")
def pause(
    name: NameArgument, host: OptionalHostOption = "", namespace: NamespaceOption = "kubeflow", home: HomeOption = HOME
) -> None:
    """Stop firing until it is resumed; a current run continues."""
    _switch(name, False, host, namespace, home)


@schedule_app.command("resume")
def resume(
    name: NameArgument, host: OptionalHostOption = "", namespace: NamespaceOption = "kubeflow", home: HomeOption = HOME
) -> None:
    """Resume firing from the next due time."""
    _switch(name, True, host, namespace, home)


def _switch(name: str, enabled: bool, host: str, namespace: str, home: Path) -> None:
    from flashslm.launch.kfp import recurring_runs

    if host:
        kfp = client(host, namespace)
        kfp.set_schedule_enabled(recurring_runs.find(kfp, name).recurring_run_id, enabled)
    else:
        local_schedules(home).set_enabled(name, enabled, time.time())
    console.print(f"{name} is {'on' if enabled else 'paused'}", **AS_IT_IS)


@schedule_app.command("delete")
def delete(
    name: NameArgument, host: OptionalHostOption = "", namespace: NamespaceOption = "kubeflow", home: HomeOption = HOME
) -> None:
    """Remove it; its runs stay."""
    from flashslm.launch.kfp import recurring_runs
    from flashslm.launch.schedule import kept_hook

    if host:
        kfp = client(host, namespace)
        kfp.delete_schedule(recurring_runs.find(kfp, name).recurring_run_id)
    else:
        local_schedules(home).delete(name)
        kept_hook.forget(home.resolve(), name)
    console.print(f"{name} is gone", **AS_IT_IS)


@schedule_app.command("run")
def run(home: HomeOption = HOME) -> None:
    """Be the local scheduler, in the foreground; several may run, each time fires once."""
    from flashslm.launch.schedule.scheduler import Scheduler, launch_in, serve

    def say(text: str) -> None:
        console.print(text, **AS_IT_IS)

    scheduler = Scheduler(local_schedules(home), launch_in(home.resolve()), say)
    say("watching schedules; Ctrl-C stops")
    raise typer.Exit(serve(scheduler, say))
