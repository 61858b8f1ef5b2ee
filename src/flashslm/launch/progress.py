"""What a run's event file says about its steps: the launcher's view of the run while it runs and afterwards."""

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

NOT_REGISTERED = "promote, but the model was not registered"  # a decision that was not carried out


@dataclass
class StepRecord:
    """One task; each iteration of a loop is a separate task.

    `state`: RUNNING, SUCCESS, FAILURE, CANCELLED, here also KILLED (with its run), on a cluster also WAITING and, after
    the run's end, SKIPPED.
    """

    name: str
    label: str
    state: str = "RUNNING"
    cached: bool = False
    duration_s: float = 0.0
    summary: str = ""
    started_s: float = 0.0
    attempt: int = 0
    key: str = ""  # equal for the same task of another run
    done: int = 0  # of `total`, in units of the step's own: optimizer steps, trials, models
    total: int = 0
    tokens_per_s: float = 0.0
    counted: tuple[int, float] = (0, 0.0)  # the first count of the present attempt, and when it came
    counted_s: float = 0.0  # when the newest came
    error: str = ""  # of the present attempt, as the step reported it
    log: Path | None = None
    pod: str = ""  # of the newest attempt, on a cluster
    artifacts: dict[str, Path] = field(default_factory=dict)

    @property
    def remaining_s(self) -> float | None:
        """Until the end, at the pace so far; None before two counts."""
        begun, begun_s = self.counted
        if self.done <= begun or self.total <= 0:
            return None
        return (self.total - self.done) * (self.counted_s - begun_s) / (self.done - begun)


@dataclass
class Change:
    """Something a person wants to know at once: the step as it was then."""

    step: StepRecord
    what: str  # started, progress, attempt_failed, ended


class Progress:
    """Folds the events of the runner (which carry `task`) and of the steps (start, progress, end, fail) into records.

    A step says what came out, the runner says how its process ended: only the runner changes a state.
    """

    def __init__(self, events: Path) -> None:
        self._events = events
        self._offset = 0
        self._newest_s = 0.0
        self._tasks: dict[str, StepRecord] = {}

    @property
    def steps(self) -> list[StepRecord]:
        return list(self._tasks.values())

    def update(self) -> list[Change]:
        """Read what was appended since the last call."""
        changes = []
        for event in self._read_new():
            with suppress(KeyError, TypeError, AttributeError):  # a damaged line, or one of a task whose start is lost
                if change := self._apply(event):
                    changes.append(change)
        return changes

    def close(self, state: str) -> None:
        """What still runs when the run is over ended with it."""
        for step in self.steps:
            if step.state == "RUNNING":
                step.state, step.summary = state, step.error or step.summary or "ended with the run"
                step.duration_s = max(0.0, self._newest_s - step.started_s)

    def _read_new(self) -> Iterator[dict[str, Any]]:
        if not self._events.is_file():
            return
        with self._events.open("rb") as stream:
            stream.seek(self._offset)
            new = stream.read()
        complete = new[: new.rfind(b"\n") + 1]
        self._offset += len(complete)
        for line in complete.splitlines():
            with suppress(ValueError):  # a step killed inside a write leaves half a line
                yield json.loads(line)

    def _apply(self, event: dict[str, Any]) -> Change | None:
        self._newest_s = max(self._newest_s, event["time_s"])
        if "task" in event:
            return self._apply_task(event)
        step = self._step_of(event)
        if step is None:
            return None
        if event["event"] == "fail":
            step.error = event["summary"]
            return None
        step.summary = event["summary"] or step.summary
        _count(step, event)
        return Change(replace(step), "progress") if event["event"] == "progress" else None

    def _apply_task(self, event: dict[str, Any]) -> Change | None:
        if event["event"] == "task_start":
            step = StepRecord(event["step"], event["label"], started_s=event["time_s"], log=Path(event["log"]))
            step.key = event.get("key", "")
            self._tasks[event["task"]] = step
            return None
        step = self._tasks[event["task"]]
        if event["event"] == "task_attempt":
            step.attempt, step.error, step.total = event["attempt"], "", 0
            return Change(replace(step), "started")
        if event["event"] == "task_exit":
            step.summary = step.error or event["summary"]
            return Change(replace(step), "attempt_failed")
        step.state, step.cached = event["state"], event["cached"]
        step.duration_s = event["time_s"] - step.started_s
        if step.cached:
            step.summary = event["summary"]
        step.artifacts = {name: Path(path) for name, path in event["artifacts"].items()}
        return Change(replace(step), "ended")

    def _step_of(self, event: dict[str, Any]) -> StepRecord | None:
        """The running task a step's event belongs to."""
        running = [s for s in self.steps if s.state == "RUNNING" and s.name == event["step"]]
        same = [s for s in running if s.label == event["label"]]
        return next(iter(same or running), None)


def _count(step: StepRecord, event: dict[str, Any]) -> None:
    """Take over how far a step is, where its event says so."""
    if "total" not in event:
        return
    if not step.total:
        step.counted = (event["done"], event["time_s"])
    step.done, step.total, step.counted_s = event["done"], event["total"], event["time_s"]
    step.tokens_per_s = event.get("tokens_per_s", 0.0)
