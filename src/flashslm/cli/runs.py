"""`flashslm runs`: what ran, here or on a cluster, what came of it, and how two runs differ."""

import json
import webbrowser
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from flashslm.cli.cluster import NamespaceOption, client, counts
from flashslm.cli.options import PIPELINES, RUNS, JsonOption, RunsOption
from flashslm.cli.output import AS_IT_IS, console, print_whole, show

if TYPE_CHECKING:
    from flashslm.launch.local.run_records import RunRecord
    from flashslm.launch.progress import StepRecord

HostOption = Annotated[
    str, typer.Option("--host", envvar="KF_PIPELINES_ENDPOINT", help="KFP's address; not given: runs of this machine.")
]
RunId = Annotated[str, typer.Argument(help="As `flashslm runs list` shows it; here also its beginning, or latest.")]

runs_app = typer.Typer(no_args_is_help=True, help="Runs of this machine, or with --host of a cluster.")


def register(app: typer.Typer) -> None:
    app.add_typer(runs_app, name="runs", rich_help_panel=PIPELINES)


@runs_app.command("list")
def runs_list(
    host: HostOption = "",
    namespace: NamespaceOption = "kubeflow",
    limit: Annotated[int, typer.Option(min=1, max=200, help="How many, the newest first.")] = 20,
    runs: RunsOption = RUNS,
    as_json: JsonOption = False,
) -> None:
    """The newest runs: their states and, of this machine, what came out."""
    if host:
        found = [_facts(run) for run in client(host, namespace).latest_runs(limit)]
    else:
        from flashslm.launch.local.run_records import all_runs

        found = [_local_facts(run) for run in all_runs(runs)[:limit]]
    if as_json:
        print(json.dumps({"runs": found}))
        return
    if not found and not host:
        Console().print(f"no runs in '{runs}': `flashslm run CONFIG` makes one", **AS_IT_IS)
        return
    hidden = {"error", "operators", "parameters"} | (set() if host else {"created"})  # a local run's id says when
    names = [key for key in (found[0] if found else {}) if key not in hidden]
    whole = Column("run", no_wrap=True, min_width=max(len(run["run_id"]) for run in found) if found else 36)
    heads = (Column(name.removeprefix("test/").replace("_", " "), overflow="fold") for name in names[1:])
    table = Table(whole, *heads, box=None, pad_edge=False)
    for run in found:
        table.add_row(*(Text(_shown(run.get(name))) for name in names))
    print_whole(table)


@runs_app.command("show")
def runs_show(
    run_id: RunId,
    host: HostOption = "",
    namespace: NamespaceOption = "kubeflow",
    runs: RunsOption = RUNS,
    as_json: JsonOption = False,
) -> None:
    """One run: its state, and every step with its result or the reason of its failure."""
    from flashslm.launch.display import table

    facts, steps = _cluster_run(run_id, host, namespace) if host else _local_run(run_id, runs)
    if as_json:
        print(json.dumps(facts | {"steps": [_step_facts(step) for step in steps]}))
        return
    show(facts, as_json)
    Console().print(table(steps))


def _cluster_run(run_id: str, host: str, namespace: str) -> "tuple[dict[str, Any], list[StepRecord]]":
    from flashslm.launch.kfp.run_steps import steps_of
    from flashslm.launch.kfp.watch import with_results

    kfp = client(host, namespace)
    run = kfp.run(run_id)
    steps = with_results(kfp, run_id, steps_of(kfp, run), {})
    return _facts(run) | {"url": kfp.run_url(run_id)} | counts(steps), steps


def _local_run(run_id: str, runs: Path) -> "tuple[dict[str, Any], list[StepRecord]]":
    from flashslm.launch.local.run_records import find

    run = find(runs, run_id)
    steps = run.steps
    known = {key: value for key, value in run.facts.items() if key not in ("owner", "steps")}
    cached = {"cached_steps": sum(step.cached for step in steps)}  # each iteration of a loop, as the run itself counts
    return {"run_id": run.run_id} | known | {"state": run.state} | counts(steps) | cached, steps


@runs_app.command("logs")
def runs_logs(
    run_id: RunId,
    step: Annotated[str, typer.Argument(help="A step as `flashslm runs show` lists it, or the name of all its tasks.")],
    host: HostOption = "",
    namespace: NamespaceOption = "kubeflow",
    runs: RunsOption = RUNS,
) -> None:
    """The whole log of a step: on a cluster that of its newest attempt."""
    if host:
        from flashslm.launch.kfp.logs import step_log
        from flashslm.launch.kfp.run_steps import steps_of

        kfp = client(host, namespace)
        found = _matching(steps_of(kfp, kfp.run(run_id)), step)
        logs = ["\n".join(step_log(kfp, run_id, record.pod)) for record in found]
    else:
        from flashslm.launch.local.run_records import find

        found = _matching(find(runs, run_id).steps, step)
        logs = [_read(record.log) for record in found]
    for record, text in zip(found, logs, strict=True):
        if len(found) > 1:
            print(f"== {record.label}")
        elsewhere = ": it was taken from the cache, its log is with the run that made it" if record.cached else ""
        print(text or f"no log of {record.label} ({_state(record)}) is there{elsewhere}")


def _matching(steps: "list[StepRecord]", step: str) -> "list[StepRecord]":
    found = [s for s in steps if step in (s.label, s.name)]
    if not found:
        raise ValueError(f"the run has no step '{step}'; it has: {', '.join(s.label for s in steps)}")
    return found


def _read(log: Path | None) -> str:
    return log.read_text(encoding="utf-8", errors="replace").rstrip() if log and log.is_file() else ""


def _state(step: "StepRecord") -> str:
    return "cached" if step.cached else step.state.lower()


@runs_app.command("open")
def runs_open(
    run_id: RunId = "latest",
    mlflow: Annotated[bool, typer.Option("--mlflow", help="MLflow's page of the run instead.")] = False,
    runs: RunsOption = RUNS,
) -> None:
    """Open a run's report in the browser, and print where it is."""
    from flashslm.launch.local.run_records import find

    run = find(runs, run_id)
    report = run.directory / "report.html"
    if not mlflow and not report.is_file():
        raise ValueError(f"run {run.run_id} ({run.state}) has no report: `flashslm runs show {run.run_id}` says why")
    address = str(run.facts.get("mlflow_url", "")) if mlflow else report.resolve().as_uri()
    print(address)
    webbrowser.open(address)


@runs_app.command("compare")
def runs_compare(
    first: RunId,
    second: Annotated[str, typer.Argument(help="The other run.")] = "latest",
    runs: RunsOption = RUNS,
    as_json: JsonOption = False,
) -> None:
    """How two runs of this machine differ: settings, results, commit and packages."""
    from flashslm.launch.local.run_records import differing, find

    pair = find(runs, first), find(runs, second)
    rows = list(differing(*pair))
    if as_json:
        print(json.dumps({key: [before, after] for key, before, after in rows}))
        return
    table = Table(box=None, pad_edge=False)
    for name in ("", pair[0].run_id, pair[1].run_id, "change"):
        table.add_column(name, overflow="fold", justify="right" if name == "change" else "left")
    for key, before, after in rows:
        table.add_row(key, Text(_shown(before)), Text(_shown(after)), _change(before, after))
    Console().print(table if rows else "the two runs differ in nothing")


@runs_app.command("cancel")
def runs_cancel(
    run_id: RunId,
    host: Annotated[str, typer.Option("--host", envvar="KF_PIPELINES_ENDPOINT", help="KFP's address.")],
    namespace: NamespaceOption = "kubeflow",
) -> None:
    """End a run on a cluster: its steps get SIGTERM. One of this machine ends by Ctrl-C."""
    client(host, namespace).cancel(run_id)
    console.print(f"{run_id} ends", **AS_IT_IS)


def _step_facts(step: "StepRecord") -> dict[str, Any]:
    facts = {"step": step.label, "state": step.state, "cached": step.cached, "duration_s": step.duration_s}
    return facts | {"attempts": step.attempt, "result": step.summary, "pod": step.pod}


def _local_facts(run: "RunRecord") -> dict[str, Any]:
    made = datetime.fromtimestamp((run.directory / "config.yaml").stat().st_mtime).astimezone()
    named = ("decision", "test/perplexity", "latency_ms", "parameters", "operators", "duration_s")
    results = {name: run.facts.get(name) for name in named}
    return {"run_id": run.run_id, "state": run.state} | results | {"created": shown_time(made)}


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


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)


def _change(before: Any, after: Any) -> str:
    both = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (before, after))
    return f"{after / before - 1:+.1%}" if both and before else ""
