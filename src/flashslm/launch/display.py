"""The run on a terminal: a live table there, plain lines anywhere else."""

import time
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from flashslm.launch.progress import Change, StepRecord
from flashslm.reporting.run_facts import duration

_STYLES = {"RUNNING": "yellow", "SUCCESS": "green", "FAILURE": "bold red", "CANCELLED": "magenta", "KILLED": "magenta"}
_STYLES |= {"WAITING": "dim", "SKIPPED": "dim"}
_PROGRESS_EVERY_S = 10.0  # plain lines only


class Display:
    """Shows which step runs, for how long, and what came out; the live table is gone when the run is over."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        self._shown_s: dict[str, float] = {}

    def __enter__(self) -> "Display":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._live:
            self._live.stop()

    def show(self, steps: list[StepRecord], changes: list[Change]) -> None:
        if self._live:
            self._live.update(table(steps))
            return
        for change in changes:
            if line := self._line(change):
                self._console.print(Text(line), soft_wrap=True)

    def _line(self, change: Change) -> str:
        step, now_s = change.step, time.monotonic()
        if change.what == "progress":
            if now_s - self._shown_s.get(step.label, 0.0) < _PROGRESS_EVERY_S:
                return ""
            self._shown_s[step.label] = now_s
            return f"{step.label}: {how_far(step)}{step.summary}"
        if change.what == "attempt_failed":
            return f"{step.label}: attempt {step.attempt} failed: {step.summary}"
        if change.what == "ended":
            return f"{step.label}: {outcome(step)}" + (f": {step.summary}" if step.summary else "")
        return f"{step.label}: started" + (f" (attempt {step.attempt})" if step.attempt > 1 else "")


def table(steps: list[StepRecord]) -> Table:
    """One row per task."""
    rows = Table(box=None, pad_edge=False)
    rows.add_column("step", no_wrap=True)
    rows.add_column("state", no_wrap=True)
    rows.add_column("time", justify="right", no_wrap=True)
    rows.add_column("result", overflow="fold")
    for step in steps:
        duration_s = time.time() - step.started_s if step.state == "RUNNING" else step.duration_s
        state = "cached" if step.cached else step.state.lower()
        state += f" ({step.attempt})" if step.attempt > 1 else ""
        shown = "" if step.cached or step.state in ("WAITING", "SKIPPED") else f"{duration_s:.1f} s"
        result = how_far(step) + step.summary if step.state == "RUNNING" else step.summary
        rows.add_row(Text(step.label), Text(state, style=_STYLES[step.state]), shown, Text(result))
    return rows


def how_far(step: StepRecord) -> str:
    """`120/200, 4,210 tokens/s, 35 s left: `; empty for a step that does not count."""
    if not step.total:
        return ""
    parts = [f"{step.done:,}/{step.total:,}"]
    if step.tokens_per_s:
        parts.append(f"{step.tokens_per_s:,.0f} tokens/s")
    if (remaining_s := step.remaining_s) is not None and step.done < step.total:
        parts.append(f"{duration(remaining_s)} left")
    return ", ".join(parts) + ": "


def outcome(step: StepRecord) -> str:
    if step.cached:
        return "cached"
    word = {"SUCCESS": "done", "CANCELLED": "cancelled"}.get(step.state, "FAILED")
    return f"{word} after {step.duration_s:.1f} s"
