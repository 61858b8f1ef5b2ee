"""Two schedulers over the embedded object store: every time that is due fires once."""

import threading
from datetime import UTC, datetime
from operator import ge
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flashslm.cli.app import app
from flashslm.config import RunConfig
from flashslm.infra.settings import Settings
from flashslm.infra.storage.object_store import ObjectStore
from flashslm.launch.schedule.records import Schedule, Schedules
from flashslm.launch.schedule.scheduler import Scheduler
from tests.waiting import wait_until

pytestmark = pytest.mark.services

BEGIN_S = datetime(2026, 7, 1, tzinfo=UTC).timestamp()


class Ended:
    """A run that is over when it is first looked at."""

    def poll(self) -> int:
        return 0

    def terminate(self) -> None:
        pass


def test_every_time_fires_once(store: ObjectStore) -> None:
    schedules = Schedules(store)
    recipe = RunConfig(name="toy").model_dump(mode="json")
    values = {"pipeline": "retraining", "cron": "* * * * *", "time_zone": "UTC", "recipe": recipe}
    schedules.create(Schedule.model_validate({"name": "minutely", "settled_s": BEGIN_S} | values))
    clock_s = [BEGIN_S]
    fired: list[float] = []

    def launch(_: Schedule, due_s: float) -> tuple[Ended, Path]:
        fired.append(due_s)
        return Ended(), Path("run.log")

    ticks = [0, 0]

    def work(number: int, stop: threading.Event) -> None:
        scheduler = Scheduler(schedules, launch, lambda _: None, now=lambda: clock_s[0])
        while not stop.is_set():
            scheduler.tick()
            ticks[number] += 1

    stop = threading.Event()
    workers = [threading.Thread(target=work, args=(number, stop)) for number in range(2)]
    for worker in workers:
        worker.start()
    try:
        for minute in range(1, 6):
            clock_s[0] = BEGIN_S + 60 * minute
            wait_until(lambda minute=minute: len(fired) >= minute)
            looked = [number + 2 for number in ticks]  # one whole tick of each, at least, after it has fired
            wait_until(lambda looked=looked: all(map(ge, ticks, looked)))
    finally:
        stop.set()
        for worker in workers:
            worker.join()
    assert fired == [BEGIN_S + 60 * minute for minute in range(1, 6)]
    assert schedules.names() == ["minutely"]
    schedules.delete("minutely")
    assert schedules.names() == []


def test_the_command_says_what_fires_and_that_nothing_is_there(platform_env: Settings) -> None:
    def schedule(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["schedule", *arguments])
        assert result.exit_code == 0, result.output
        return result.output

    recipe = str(Path(__file__).parents[2] / "configs" / "retraining-demo.yaml")
    assert "no schedules" in schedule("list")
    created = schedule("create", "command", "--config", recipe, "--cron", "0 2 * * *")
    assert "02:00:00+00:00" in created and "while `flashslm schedule run` is running" in created
    assert "command  0 2 * * * UTC  on" in schedule("list")
    schedule("delete", "command")
    assert "no schedules" in schedule("list")
