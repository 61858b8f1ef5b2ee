"""Folding the event file of a run into what a person sees."""

import io
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from flashslm.launch.display import Display, how_far, table
from flashslm.launch.progress import Progress


class EventFile:
    def __init__(self, directory: Path) -> None:
        self.path = directory / "events.jsonl"
        self.progress = Progress(self.path)

    def append(self, event: str, step: str = "pretrain", label: str = "pretrain seed=0", **fields: Any) -> None:
        line = {"step": step, "label": label, "event": event, "time_s": 100.0, "summary": ""} | fields
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def start_task(self, task: str = "a", **fields: Any) -> None:
        self.append("task_start", task=task, log="/tmp/a.log", **fields)
        self.append("task_attempt", task=task, attempt=1, **fields)

    def printed(self) -> list[str]:
        screen = io.StringIO()
        with Display(Console(file=screen, width=40)) as display:
            display.show(self.progress.steps, self.progress.update())
        return screen.getvalue().splitlines()


def test_no_file_is_no_step(tmp_path: Path) -> None:
    progress = EventFile(tmp_path).progress
    assert progress.update() == [] and progress.steps == []


def test_half_a_line_waits_and_a_broken_one_is_skipped(tmp_path: Path) -> None:
    events = EventFile(tmp_path)
    events.start_task()
    whole = events.path.read_text()
    events.path.write_text(whole[:-20])
    assert [c.what for c in events.progress.update()] == []
    events.path.write_text(whole + '{"step": "pre\n')
    assert [c.what for c in events.progress.update()] == ["started"]
    assert len(events.progress.steps) == 1


def test_end_of_a_task_gives_state_duration_and_artifacts(tmp_path: Path) -> None:
    events = EventFile(tmp_path)
    events.start_task()
    events.append("end", summary="loss 3.2 nats")
    events.append("task_end", task="a", time_s=107.5, state="SUCCESS", cached=False, artifacts={"checkpoint": "/c"})
    events.progress.update()
    (step,) = events.progress.steps
    assert (step.state, step.duration_s, step.summary) == ("SUCCESS", 7.5, "loss 3.2 nats")
    assert step.artifacts == {"checkpoint": Path("/c")}


def test_step_events_go_to_the_iteration_they_name(tmp_path: Path) -> None:
    events = EventFile(tmp_path)
    events.start_task("a", label="pretrain seed=0")
    events.start_task("b", label="pretrain seed=1")
    events.append("progress", label="pretrain seed=1", summary="step 10")
    events.progress.update()
    assert [step.summary for step in events.progress.steps] == ["", "step 10"]


def test_failed_attempt_shows_the_steps_own_message_or_how_it_ended(tmp_path: Path) -> None:
    events = EventFile(tmp_path)
    events.start_task()
    events.append("fail", summary="ValueError: no shards")
    events.append("task_exit", task="a", attempt=1, summary="exit code 1")
    events.append("task_attempt", task="a", attempt=2)
    events.append("task_exit", task="a", attempt=2, summary="killed by SIGKILL")
    assert events.printed() == [
        "pretrain seed=0: started",
        "pretrain seed=0: attempt 1 failed: ValueError: no shards",
        "pretrain seed=0: started (attempt 2)",
        "pretrain seed=0: attempt 2 failed: killed by SIGKILL",
    ]


def test_lines_of_progress_are_rare(tmp_path: Path) -> None:
    events = EventFile(tmp_path)
    events.start_task()
    for step in range(100):
        events.append("progress", summary=f"step {step}")
    assert events.printed() == ["pretrain seed=0: started", "pretrain seed=0: step 0"]


def test_table_shows_state_attempt_time_and_result(tmp_path: Path) -> None:
    events = EventFile(tmp_path)
    events.start_task()
    events.append("task_attempt", task="a", attempt=2)
    events.append("end", summary="loss [3.2] nats")
    events.append("task_end", task="a", time_s=107.5, state="SUCCESS", cached=False, artifacts={})
    events.append("task_start", task="b", step="gate", label="gate", log="/tmp/g.log")
    events.append("task_end", task="b", step="gate", label="gate", state="SUCCESS", cached=True, artifacts={})
    events.progress.update()
    screen = io.StringIO()
    Console(file=screen, width=80).print(table(events.progress.steps))
    rows = [line.split() for line in screen.getvalue().splitlines()[1:]]
    assert rows[0] == ["pretrain", "seed=0", "success", "(2)", "7.5", "s", "loss", "[3.2]", "nats"]
    assert rows[1] == ["gate", "cached"]


def test_terminal_shows_the_table_while_the_run_goes_on(tmp_path: Path) -> None:
    events = EventFile(tmp_path)
    events.start_task()
    screen = io.StringIO()
    with Display(Console(file=screen, width=60, force_terminal=True)) as display:
        display.show(events.progress.steps, events.progress.update())
        display.show(events.progress.steps, [])
    assert "pretrain seed=0" in screen.getvalue() and "running" in screen.getvalue()


def test_running_steps_end_with_the_run(tmp_path: Path) -> None:
    events = EventFile(tmp_path)
    events.start_task()
    events.append(event="progress", time_s=104.0, summary="step 10 of 100")
    events.progress.update()
    events.progress.close("CANCELLED")
    assert [(step.state, step.duration_s) for step in events.progress.steps] == [("CANCELLED", 4.0)]


def test_a_step_that_counts_shows_how_far_it_is_and_when_it_ends(tmp_path: Path) -> None:
    events = EventFile(tmp_path)
    events.start_task()
    events.append("progress", summary="loss 5", time_s=110.0, done=10, total=200, tokens_per_s=4210.4)
    events.progress.update()
    (step,) = events.progress.steps
    assert how_far(step) == "10/200, 4,210 tokens/s: ", "one count has no pace"
    events.append("progress", summary="loss 4", time_s=120.0, done=30, total=200, tokens_per_s=4000.0)
    assert events.printed()[-1] == "pretrain seed=0: 30/200, 4,000 tokens/s, 1 min 25 s left: loss 4"
    events.append("task_exit", task="a", attempt=1, summary="killed by SIGKILL")
    events.append("task_attempt", task="a", attempt=2)
    events.append("progress", time_s=200.0, done=40, total=200)
    events.append("progress", time_s=210.0, done=50, total=200)
    events.progress.update()
    assert how_far(step) == "50/200, 2 min 30 s left: ", "the pace is that of the present attempt"


def test_a_step_that_does_not_count_shows_what_it_says(tmp_path: Path) -> None:
    events = EventFile(tmp_path)
    events.start_task()
    events.append("progress", summary="depth 2")
    assert events.printed()[-1] == "pretrain seed=0: depth 2"
