"""What is known of a run only when it is over: when, how long, by what, each step's state, what was registered."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Headline:
    """The report's first line. `kind` is promote, hold or failed and decides its colour."""

    kind: str
    text: str


@dataclass(frozen=True)
class RunFacts:
    """`steps` have label, state, cached, duration_s, summary and log; links and logs are relative to the page."""

    run_id: str
    pipeline: str
    started: str
    duration_s: float
    commit: str
    load: str
    differences: Mapping[str, Any]  # the recipe's, from the defaults
    steps: Sequence[Mapping[str, Any]]
    headline: Headline | None = None  # of a promotion: what came of it
    links: Mapping[str, str] = field(default_factory=dict)
    commands: Sequence[tuple[str, str]] = ()  # what for, and the command


def duration(seconds: float) -> str:
    """As a person reads it: 4.2 s, 3 min 5 s, 2 h 10 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
