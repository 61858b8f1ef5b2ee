"""Follow a run on a cluster until it ends, with the display of the local terminal."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.text import Text

from flashslm.launch.display import Display
from flashslm.launch.kfp.api import Unavailable
from flashslm.launch.kfp.client import KfpClient
from flashslm.launch.kfp.logs import TAIL_LINES, result_in, step_log
from flashslm.launch.kfp.run_steps import ENDED, NOT_STARTED, state_of, steps_of
from flashslm.launch.processes import LaunchError
from flashslm.launch.progress import Change, StepRecord

_POLL_S = 5.0


def follow(
    client: KfpClient, run_id: str, console: Console, sleep: Callable[[float], None] = time.sleep
) -> tuple[str, list[StepRecord]]:
    """Show a run's steps until it ends; returns its state (SUCCEEDED, FAILED, CANCELED, SKIPPED) and its steps.

    Raises LaunchError when the server is away for longer than the connection's patience: the run continues.
    """
    known: dict[str, StepRecord] = {}
    with Display(console) as display:
        while True:
            try:
                run = client.run(run_id)
                steps = with_results(client, run_id, steps_of(client, run), known)
            except Unavailable as error:
                raise LaunchError(f"{error}; the run continues: {client.run_url(run_id)}") from error
            display.show(steps, list(_changes(known, steps)))
            known = {step.label: step for step in steps}
            if run.state in ENDED:
                break
            sleep(_POLL_S)
    _explain(client, run, steps, console)
    return state_of(run), steps


def with_results(
    client: KfpClient, run_id: str, steps: list[StepRecord], known: dict[str, StepRecord]
) -> list[StepRecord]:
    """The steps with what each says of its result, read once from its log."""
    for step in steps:
        if step.state == "SUCCESS" and step.pod:
            before = known.get(step.label)
            read = before is not None and before.state == "SUCCESS"
            step.summary = before.summary if read and before else result_in(step_log(client, run_id, step.pod))
    return steps


def _changes(known: dict[str, StepRecord], steps: list[StepRecord]) -> Iterator[Change]:
    for step in steps:
        before = known.get(step.label)
        if step.state in NOT_STARTED:
            continue
        new = before is None or before.state in NOT_STARTED
        if not step.cached and (new or (before and before.attempt != step.attempt and step.attempt > 1)):
            yield Change(replace(step), "started")
        if step.state != "RUNNING" and (new or (before and before.state == "RUNNING")):
            yield Change(replace(step), "ended")


def _explain(client: KfpClient, run: Any, steps: list[StepRecord], console: Console) -> None:
    def say(text: str, style: str = "") -> None:
        console.print(Text(text, style=style), soft_wrap=True)

    failed = [step for step in steps if step.state == "FAILURE"]
    for step in failed:
        say(f"{step.label} failed: {step.summary or 'no reason is known'}", "bold red")
        for line in step_log(client, run.run_id, step.pod)[-TAIL_LINES:]:
            say(f"  {line}", "dim")
        where = f"--host {client.connection.host}"
        say(f"its whole log: flashslm runs logs {run.run_id} '{step.label}' {where}")
    if state_of(run) == "CANCELED":
        say("the run was cancelled", "magenta")
    elif run.state == "FAILED" and not failed:
        message = run.error.message if run.error else ""
        say(f"the run failed outside its steps: {message or client.run_url(run.run_id)}", "bold red")
