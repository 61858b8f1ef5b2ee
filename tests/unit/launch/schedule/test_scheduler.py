"""The local scheduler with a clock that the test sets, and a store in memory with conditional puts."""

import copy
import signal
from collections.abc import Callable
from typing import Any

import pytest

from flashslm.infra import outages
from flashslm.infra.storage.errors import StoreUnavailable
from flashslm.launch.processes import LaunchError
from flashslm.launch.schedule import scheduler as scheduler_module
from flashslm.launch.schedule.records import SILENCE_S, Schedule
from flashslm.launch.schedule.scheduler import GRACE_S, HEARTBEAT_S, serve
from tests.unit.launch.schedule.world import RECIPE, World, at


def test_each_time_fires_once(world: World) -> None:
    world.add()
    world.go(world.scheduler(), "2026-07-03 12:00")
    assert world.fired == [("nightly", f"2026-07-0{day} 02:00:00+02:00") for day in (1, 2, 3)]
    assert world.find().running is None and world.find().last.state == "SUCCESS"
    assert world.said[0] == "nightly: due 2026-07-01 02:00:00+02:00: retraining starts, log run.log"
    assert world.said[1] == "nightly: due 2026-07-01 02:00:00+02:00: success"


def test_the_clock_goes_forward_and_back(world: World) -> None:
    world.now_s = at("2026-03-28 12:00")
    world.add(cron="30 2 * * *")
    world.go(world.scheduler(), "2026-03-30 12:00")
    assert [due for _, due in world.fired] == ["2026-03-29 03:00:00+02:00", "2026-03-30 02:30:00+02:00"]
    world.fired.clear()
    world.now_s = at("2026-10-24 12:00")
    world.schedules.set_enabled("nightly", False, world.now_s)
    world.schedules.set_enabled("nightly", True, world.now_s)
    world.go(world.scheduler(), "2026-10-26 12:00")
    assert [due for _, due in world.fired] == ["2026-10-25 02:30:00+02:00", "2026-10-26 02:30:00+01:00"]


def test_one_that_cannot_start_or_be_read_is_told_and_the_others_go_on(world: World) -> None:
    world.add("apart", recipe=RECIPE | {"removed_since": 1})
    world.add("nightly")
    broken = world.add("zone").model_dump() | {"time_zone": "Mars/Olympus"}
    world.store.put_json("schedules/zone.json", broken)
    world.store.put_json("schedules/other.json", {"name": "other"})
    scheduler = world.scheduler()
    launch = scheduler._launch
    scheduler._launch = lambda schedule, due_s: (schedule.config, launch(schedule, due_s))[1]
    world.go(scheduler, "2026-07-02 12:00")
    assert world.fired == [("nightly", f"2026-07-0{day} 02:00:00+02:00") for day in (1, 2)]
    last = world.find("apart").last
    assert last.state == "FAILURE" and last.detail.startswith("cannot start: ") and "removed_since" in last.detail
    assert world.find("apart").running is None
    for name, expected in (("zone", "time zone 'Mars/Olympus' is unknown"), ("other", "cron")):
        assert len([said for said in world.said if said.startswith(f"{name}: ") and expected in said]) == 1


def test_a_damaged_record_stops_no_list_and_can_be_deleted(world: World, caplog: pytest.LogCaptureFixture) -> None:
    damages = ["{", "[]", "null", '{"name": "x"}']
    for number, content in enumerate(damages):
        world.store.objects[f"schedules/broken-{number}.json"] = (content, f"broken-{number}")
    world.add()
    assert [schedule.name for schedule in world.schedules.all()] == ["nightly"]
    assert all(f"schedule 'broken-{number}' cannot be read" in caplog.text for number in range(len(damages)))
    world.go(world.scheduler(), "2026-07-02 03:00")
    assert [name for name, _ in world.fired] == ["nightly", "nightly"]
    assert len([text for text in world.said if text.startswith("broken-")]) == len(damages)
    for number in range(len(damages)):
        world.schedules.delete(f"broken-{number}")
    assert world.schedules.names() == ["nightly"]
    with pytest.raises(LaunchError, match="there are: nightly"):
        world.schedules.delete("broken-0")


def test_missed_times_are_not_caught_up(world: World) -> None:
    world.add()
    world.now_s = at("2026-07-04 12:00")  # three nights without a scheduler
    scheduler = world.scheduler()
    scheduler.tick()
    scheduler.tick()
    assert world.fired == []
    assert world.said == [
        "nightly: due 2026-07-01 02:00:00+02:00: missed: no scheduler was there, and missed times are not caught up"
    ]
    assert world.find().last.state == "MISSED"
    world.go(scheduler, "2026-07-05 12:00")
    assert world.fired == [("nightly", "2026-07-05 02:00:00+02:00")]


@pytest.mark.parametrize(("late_s", "fires"), [(GRACE_S - 1, True), (GRACE_S + 1, False)])
def test_a_little_late_is_in_time(world: World, late_s: float, fires: bool) -> None:
    world.add()
    world.now_s = at("2026-07-01 02:00") + late_s
    world.scheduler().tick()
    assert bool(world.fired) == fires


def test_a_run_that_goes_on_skips_the_next_times(world: World) -> None:
    world.add(cron="0 * * * *")
    scheduler = world.scheduler()
    world.go(scheduler, "2026-07-01 03:30", ends=False)
    assert world.fired == [("nightly", "2026-07-01 01:00:00+02:00")]
    assert world.said[1:] == [
        f"nightly: due 2026-07-01 0{hour}:00:00+02:00: skipped: the run of 2026-07-01 01:00:00+02:00 continues"
        for hour in (2, 3)
    ]
    world.runs[0].exit_code = 3
    world.go(scheduler, "2026-07-01 04:30", ends=False)
    assert "nightly: due 2026-07-01 01:00:00+02:00: failure: exit code 3, log run.log" in world.said
    assert [due for _, due in world.fired] == ["2026-07-01 01:00:00+02:00", "2026-07-01 04:00:00+02:00"]


def test_two_schedulers_fire_each_time_once(world: World) -> None:
    world.add(cron="*/10 * * * *")
    first, second = world.scheduler(), world.scheduler()
    while world.now_s < at("2026-07-01 01:05"):
        world.now_s += 30
        for scheduler in (first, second):
            scheduler.tick()
        for run in world.runs:
            run.exit_code = 0
    assert [due[11:16] for _, due in world.fired] == ["00:10", "00:20", "00:30", "00:40", "00:50", "01:00"]


def test_the_run_of_another_scheduler_skips_too_until_that_is_silent(world: World) -> None:
    world.add(cron="0 * * * *")
    first, second = world.scheduler(), world.scheduler()
    world.go(first, "2026-07-01 01:30", ends=False)
    seen_s = world.find().running.seen_s
    assert world.now_s - seen_s <= HEARTBEAT_S + 30, "a run that continues is said to"
    world.now_s = at("2026-07-01 02:00")
    first.tick()
    second.tick()
    assert len(world.fired) == 1 and world.find().last.state == "SKIPPED"
    world.now_s = at("2026-07-01 03:00")  # the first is gone with its run
    assert world.now_s - world.find().running.seen_s > SILENCE_S
    second.tick()
    assert world.fired[1:] == [("nightly", "2026-07-01 03:00:00+02:00")]
    world.runs[0].exit_code = 0
    first.tick()  # it comes back, and does not end the other's run
    assert world.find().running.due_s == at("2026-07-01 03:00")


def test_a_scheduler_frozen_inside_its_decision_loses(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.add()
    frozen, other = world.scheduler(), world.scheduler()
    world.now_s = at("2026-07-01 02:00")
    decide = frozen._decide

    def slowly(*arguments: Any) -> Any:
        world.store.delete(["leases/schedule-nightly"])  # it ran out
        other.tick()
        return decide(*arguments)

    monkeypatch.setattr(frozen, "_decide", slowly)
    frozen.tick()
    assert len(world.fired) == 1 and other.busy and not frozen.busy


def test_a_held_lease_is_left_to_its_holder(world: World) -> None:
    world.add()
    world.now_s = at("2026-07-01 02:00")
    world.store.put_json("leases/schedule-nightly", {"holder": "other", "expires_s": 4e9})
    scheduler = world.scheduler()
    scheduler.tick()
    assert world.fired == []
    world.store.put_json("leases/schedule-nightly", {"holder": "", "expires_s": 0})
    scheduler.tick()
    assert len(world.fired) == 1


def test_pause_and_resume(world: World) -> None:
    world.add(cron="0 * * * *")
    scheduler = world.scheduler()
    world.schedules.set_enabled("nightly", False, world.now_s)
    world.go(scheduler, "2026-07-01 03:00")
    world.now_s += 20
    world.schedules.set_enabled("nightly", True, world.now_s)
    scheduler.tick()
    assert world.fired == [] and world.said == [], "03:00 was due during the pause"
    world.go(scheduler, "2026-07-01 04:10")
    assert world.fired == [("nightly", "2026-07-01 04:00:00+02:00")]


def test_a_schedule_deleted_during_its_run(world: World) -> None:
    world.add()
    scheduler = world.scheduler()
    world.go(scheduler, "2026-07-01 02:10", ends=False)
    world.schedules.delete("nightly")
    world.go(scheduler, "2026-07-01 02:20", ends=False)
    world.add(cron="*/30 * * * *")
    world.go(scheduler, "2026-07-01 02:40", ends=False)
    assert len(world.fired) == 1 and world.find().last.state == "SKIPPED", "its run still continues"
    world.runs[0].exit_code = 0
    world.go(scheduler, "2026-07-01 03:10", ends=False)
    assert len(world.fired) == 2


def test_creating_again_is_the_same_or_an_error(world: World) -> None:
    first = world.add()
    world.now_s += 60
    assert world.add() == first
    with pytest.raises(LaunchError, match="schedule 'nightly' exists with other settings: delete it first"):
        world.add(cron="0 3 * * *")
    for act in (world.schedules.delete, lambda name: world.schedules.set_enabled(name, True, 0.0)):
        with pytest.raises(LaunchError, match="schedule 'weekly' does not exist; there are: nightly"):
            act("weekly")


def test_a_change_by_another_process_is_kept(world: World) -> None:
    world.add()
    raced = False

    def slow(schedule: Schedule) -> Schedule:
        nonlocal raced
        if not raced:
            raced = True
            world.schedules.set_enabled("nightly", False, world.now_s)
        return schedule.model_copy(update={"settled_s": 1.0})

    world.schedules.change("nightly", slow)
    assert (world.find().enabled, world.find().settled_s) == (False, 1.0)


def serving(world: World, monkeypatch: pytest.MonkeyPatch, script: list[Callable[[Any], None]]) -> int:
    """`serve` whose sleeps run the script; each step gets the noted signals."""

    class Signals:
        def __init__(self) -> None:
            self.received: list[int] = []

        def __enter__(self) -> "Signals":
            return self

        def __exit__(self, *_: object) -> None:
            pass

    signals = Signals()
    monkeypatch.setattr(scheduler_module, "StopSignals", lambda: signals)
    steps = iter(script)
    monkeypatch.setattr(scheduler_module.time, "sleep", lambda _: next(steps)(signals))
    return serve(world.scheduler(), world.said.append)


def test_ctrl_c_ends_runs_in_order_and_a_second_one_hurries(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.add()
    world.now_s = at("2026-07-01 02:00")
    script: list[Callable[[Any], None]] = [
        lambda signals: signals.received.append(2),
        lambda _: None,
        lambda signals: signals.received.append(2),
        lambda _: setattr(world.runs[0], "exit_code", 130),
        lambda _: None,
    ]
    assert serving(world, monkeypatch, script) == 130
    assert world.runs[0].terminated == 2
    assert world.find().running is None and world.find().last.state == "FAILURE"


def test_a_store_that_is_away_is_said_once_and_asked_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.add()
    world.now_s = at("2026-07-01 02:00")
    store = copy.copy(world.store)

    def away(_: str) -> list[str]:
        raise StoreUnavailable("S3 is away")

    monkeypatch.setattr(world.store, "list", away)
    script: list[Callable[[Any], None]] = [
        lambda _: None,
        lambda _: monkeypatch.setattr(world.store, "list", store.list),
        lambda _: setattr(world.runs[0], "exit_code", 0),
        lambda signals: signals.received.append(15),
    ]
    assert serving(world, monkeypatch, script) == 143
    assert world.said.count("S3 is away; trying again") == 1 and len(world.fired) == 1


def test_sigterm_ends_the_wait_for_a_store_that_is_away(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outages, "_LIMIT_WHILE_STOPPING_S", 0.0)

    def away(_: str) -> list[str]:
        signal.raise_signal(signal.SIGTERM)
        with outages.Wait("object store", "http://s3", 900.0) as wait:
            assert not wait.pause("refused"), "it waits for 900 s"
        raise StoreUnavailable("S3 is away")

    monkeypatch.setattr(world.store, "list", away)
    assert serve(world.scheduler(), world.said.append) == 143
