"""A store in memory, a clock that the test sets, and schedulers that note what they fire."""

from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from flashslm.config import RunConfig
from flashslm.launch.schedule.records import Schedule, Schedules
from flashslm.launch.schedule.scheduler import Scheduler
from tests.unit.launch.schedule.memory_store import MemoryStore

ZONE = "Europe/Berlin"
RECIPE = RunConfig(name="toy").model_dump(mode="json")


def at(text: str, zone: str = ZONE) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


class Run:
    """A run that continues until the test sets its exit code."""

    def __init__(self) -> None:
        self.exit_code: int | None = None
        self.terminated = 0

    def poll(self) -> int | None:
        return self.exit_code

    def terminate(self) -> None:
        self.terminated += 1


class World:
    """A store, a clock, and schedulers that note what they fire."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.schedules = Schedules(self.store)  # type: ignore[arg-type]
        self.now_s = at("2026-07-01 00:00")
        self.fired: list[tuple[str, str]] = []
        self.runs: list[Run] = []
        self.said: list[str] = []

    def add(self, name: str = "nightly", cron: str = "0 2 * * *", **more: Any) -> Schedule:
        values = {"name": name, "pipeline": "retraining", "cron": cron, "time_zone": ZONE, "recipe": RECIPE}
        return self.schedules.create(Schedule.model_validate(values | {"settled_s": self.now_s} | more))

    def scheduler(self) -> Scheduler:
        def launch(schedule: Schedule, due_s: float) -> tuple[Run, Path]:
            self.fired.append((schedule.name, schedule.times.shown(due_s)))
            self.runs.append(Run())
            return self.runs[-1], Path("run.log")

        return Scheduler(self.schedules, launch, self.said.append, now=lambda: self.now_s)

    def go(self, scheduler: Scheduler, until: str, step_s: float = 30.0, ends: bool = True) -> None:
        """Tick until a time of the zone's clock; runs end at once by default."""
        end_s = at(until)
        while self.now_s < end_s:
            self.now_s = min(self.now_s + step_s, end_s)
            scheduler.tick()
            for run in self.runs if ends else []:
                run.exit_code = 0
        scheduler.tick()

    def find(self, name: str = "nightly") -> Schedule:
        found = self.schedules.find(name)
        assert found is not None
        return found
