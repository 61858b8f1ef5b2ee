"""Follow a run on a cluster: KFP's task details as the steps that the terminal shows."""

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.text import Text

from flashslm.launch.display import Display
from flashslm.launch.kfp.api import Unavailable
from flashslm.launch.kfp.client import KfpClient
from flashslm.launch.processes import LaunchError
from flashslm.launch.progress import Change, StepRecord

ENDED = {"SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"}
_POLL_S = 5.0
_EXECUTOR = re.compile(r"executor(\(\d+\))?")
# What the backend adds to the pipeline's own tasks: drivers, loops and their iterations, branches.
_INNER = re.compile(r"root|executor(\(\d+\))?|.*-driver|(iteration|condition|for-loop)-.*")
_STATES = {"RUNNING": "RUNNING", "SUCCEEDED": "SUCCESS", "FAILED": "FAILURE"} | dict.fromkeys(
    ("CANCELING", "CANCELED"), "CANCELLED"
)


def steps_of(run: Any) -> list[StepRecord]:
    """The steps of a V2beta1Run that have begun, in the order they did; iterations of a loop are numbered."""
    details = list((run.run_details and run.run_details.task_details) or [])
    inside = {task.task_id: task for task in details}
    begun = [t for t in details if not _INNER.fullmatch(t.display_name or "") and t.state in _STATES]
    records: list[StepRecord] = []
    for task in sorted(begun, key=lambda t: _seconds(t.start_time or t.create_time)):
        name = str(task.display_name)
        same = sum(record.name == name for record in records)
        children = [inside[c.task_id] for c in task.child_tasks or [] if c.task_id in inside]
        executors = [c for c in children if _EXECUTOR.fullmatch(c.display_name or "")]
        records.append(
            StepRecord(
                name=name,
                label=f"{name} ({same + 1})" if same else name,
                state=_STATES[task.state],
                cached=task.state == "SUCCEEDED" and bool(executors) and all(c.state == "SKIPPED" for c in executors),
                started_s=_seconds(task.start_time or task.create_time),
                duration_s=_duration_s(task),
                attempt=max(1, len(executors)),
                summary=str(task.error.message) if task.error and task.error.message else "",
            )
        )
    return records


def follow(
    client: KfpClient, run_id: str, console: Console, sleep: Callable[[float], None] = time.sleep
) -> tuple[str, list[StepRecord]]:
    """Show a run's steps until it ends; returns its state (SUCCEEDED, FAILED, CANCELED, SKIPPED) and its steps.

    Raises LaunchError when the server is away for longer than the connection's patience: the run goes on.
    """
    known: dict[str, StepRecord] = {}
    with Display(console) as display:
        while True:
            try:
                run = client.run(run_id)
            except Unavailable as error:
                raise LaunchError(f"{error}; the run goes on: {client.run_url(run_id)}") from error
            steps = steps_of(run)
            display.show(steps, list(_changes(known, steps)))
            known = {step.label: step for step in steps}
            if run.state in ENDED:
                break
            sleep(_POLL_S)
    _explain(run, steps, console)
    return str(run.state), steps


def _changes(known: dict[str, StepRecord], steps: list[StepRecord]) -> Iterator[Change]:
    for step in steps:
        before = known.get(step.label)
        if (not before or before.attempt != step.attempt) and not step.cached:
            yield Change(replace(step), "started")
        if step.state != "RUNNING" and (not before or before.state == "RUNNING"):
            yield Change(replace(step), "ended")


def _explain(run: Any, steps: list[StepRecord], console: Console) -> None:
    failed = [step for step in steps if step.state == "FAILURE"]
    for step in failed:
        console.print(Text(f"{step.label} failed: {step.summary or 'see its log'}", style="bold red"), soft_wrap=True)
    if run.state == "FAILED" and not failed:
        said = run.error.message if run.error else ""
        console.print(Text(f"the run failed outside its steps: {said or 'see its page'}", style="bold red"))


def _seconds(when: datetime | None) -> float:
    return when.replace(tzinfo=when.tzinfo or UTC).timestamp() if when else 0.0


def _duration_s(task: Any) -> float:
    """KFP writes the year 1970 (or none) for what has not happened."""
    begin_s, end_s = _seconds(task.start_time or task.create_time), _seconds(task.end_time)
    return end_s - begin_s if end_s > begin_s else 0.0
