"""What the runs of this machine left below `runs/`: which there are, how each ended, and how two differ."""

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from flashslm.config import RunConfig
from flashslm.config.reference import differences
from flashslm.infra.process import owners
from flashslm.infra.state_files import write_whole
from flashslm.launch.processes import LaunchError
from flashslm.launch.progress import Progress, StepRecord

RECORD = "run.json"
LATEST = "latest"


@dataclass(frozen=True)
class RunRecord:
    """One run: `facts` are those that `flashslm run --json` prints, or as many as are known of one that did not end."""

    directory: Path
    facts: dict[str, Any]

    @property
    def run_id(self) -> str:
        return self.directory.name

    @property
    def state(self) -> str:
        """SUCCESS, FAILURE, CANCELLED, RUNNING, or KILLED where its process is gone without a word."""
        state = str(self.facts.get("state", "KILLED"))
        return "KILLED" if state == "RUNNING" and owners.is_gone(self.facts["owner"]) else state

    @property
    def steps(self) -> list[StepRecord]:
        progress = Progress(self.directory / "events.jsonl")
        progress.update()
        if self.state != "RUNNING":
            progress.close(self.state)
        return progress.steps


def begin(run_dir: Path, pipeline: str, mlflow_url: str) -> None:
    """Note that this process works on the run."""
    facts = {"state": "RUNNING", "owner": owners.owner(), "pipeline": pipeline, "mlflow_url": mlflow_url}
    write_whole(run_dir / RECORD, json.dumps(facts, indent=1))


def finish(run_dir: Path, facts: dict[str, Any]) -> None:
    """Note how it ended."""
    known = read(run_dir).facts
    write_whole(run_dir / RECORD, json.dumps(known | facts, indent=1))


def read(run_dir: Path) -> RunRecord:
    """What is known of it: nothing where its record is missing or damaged."""
    facts: Any = {}
    with suppress(OSError, ValueError):
        facts = json.loads((run_dir / RECORD).read_text(encoding="utf-8"))
    return RunRecord(run_dir, facts if isinstance(facts, dict) else {})


def all_runs(runs: Path) -> list[RunRecord]:
    """The newest first."""
    found = [d for d in runs.glob("*") if (d / "config.yaml").is_file() and not d.is_symlink()]
    return [read(directory) for directory in sorted(found, key=lambda d: (d / "config.yaml").stat().st_mtime)][::-1]


def find(runs: Path, name: str) -> RunRecord:
    """By its id, by what only its id begins or ends with, or `latest`: the newest that succeeded.

    Raises LaunchError that names the runs there are.
    """
    if name == LATEST and (runs / LATEST).exists():
        return read((runs / LATEST).resolve())
    every = all_runs(runs)
    exact = [run for run in every if run.run_id == name]
    matching = exact or [run for run in every if run.run_id.startswith(name) or run.run_id.endswith(name)]
    if len(matching) == 1:
        return matching[0]
    known = ", ".join(run.run_id for run in (matching or every)[:8]) or "none: `flashslm run CONFIG` makes one"
    raise LaunchError(f"{len(matching) or 'no'} runs in '{runs}' are called '{name}'; there are: {known}")


def differing(first: RunRecord, second: RunRecord) -> Iterator[tuple[str, Any, Any]]:
    """Settings of the recipe, then results, then commit and packages, that two runs do not share."""
    yield from _unequal(*(differences(_recipe(run)) for run in (first, second)))
    results = [{k: v for k, v in run.facts.items() if k not in _OF_THE_RUN_ITSELF} for run in (first, second)]
    yield from _unequal(*results)
    made = [_environment(run.directory) for run in (first, second)]
    packages = [environment.pop("packages", {}) for environment in made]
    yield from _unequal(*made)
    yield from _unequal(*packages)


_OF_THE_RUN_ITSELF = {"run_id", "run_dir", "report", "mlflow_url", "owner", "log"}


def _recipe(run: RunRecord) -> RunConfig:
    return RunConfig.model_validate(yaml.safe_load((run.directory / "config.yaml").read_text(encoding="utf-8")))


def _environment(directory: Path) -> dict[str, Any]:
    made: dict[str, Any] = json.loads((directory / "environment.json").read_text(encoding="utf-8"))
    return {key: made.get(key) for key in ("commit", "python", "platform", "packages")}


def _unequal(first: dict[str, Any], second: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for key in [*first, *(key for key in second if key not in first)]:
        if first.get(key) != second.get(key):
            yield key, first.get(key), second.get(key)
