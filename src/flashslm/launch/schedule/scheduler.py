"""The local scheduler: fires schedules when they are due, each time once however many schedulers there are.

What is done about a time that is due is decided under a lease and stored by a conditional put, so that a scheduler that
was frozen while its lease ran out loses. A time that no scheduler saw within the grace period is missed and not caught
up; one that comes while the schedule's previous run continues is skipped.
"""

import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from flashslm.config import RunConfig
from flashslm.config import file as config_file
from flashslm.infra.process.private import private_directory, private_files
from flashslm.infra.state_files import write_whole
from flashslm.infra.storage import lease
from flashslm.infra.storage.errors import ObjectCorrupt, StoreError
from flashslm.launch.processes import LaunchError, StopSignals
from flashslm.launch.schedule import kept_hook
from flashslm.launch.schedule.cron import Cron
from flashslm.launch.schedule.records import DueOutcome, Running, Schedule, Schedules

GRACE_S = 60.0  # how late a time may be noticed and still count
HEARTBEAT_S = 20.0
_POLL_S = 1.0


class Process(Protocol):
    """A run that was started, as `subprocess.Popen` has it."""

    def poll(self) -> int | None: ...

    def terminate(self) -> None: ...


Launch = Callable[[Schedule, float], tuple[Process, Path]]  # a schedule and the time it is due, to a run and its log


@dataclass
class _Started:
    process: Process
    log: Path
    times: Cron
    due_s: float
    seen_s: float


class Scheduler:
    """Watches all schedules of a store; `say` tells a person what happens, `now` is the wall clock."""

    def __init__(
        self, schedules: Schedules, launch: Launch, say: Callable[[str], None], now: Callable[[], float] = time.time
    ):
        self._schedules, self._launch, self._say, self._now = schedules, launch, say, now
        self._name = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._started: dict[str, _Started] = {}
        self._complaints: dict[str, str] = {}

    @property
    def busy(self) -> bool:
        return bool(self._started)

    def tick(self) -> None:
        """Look once at every run and at every schedule."""
        self.look_after_runs()
        for name in self._schedules.names():
            try:
                schedule = self._schedules.find(name)
                if schedule and schedule.enabled:
                    self._consider(schedule)
            except (ValueError, ObjectCorrupt) as error:  # of another version, or damaged: the others continue
                self._complain(name, " ".join(str(error).split()))

    def _complain(self, name: str, about: str) -> None:
        """Say it once."""
        if self._complaints.get(name) != about:
            self._complaints[name] = about
            self._say(f"{name}: {about}; delete it and create it again")

    def look_after_runs(self) -> None:
        """Report that a run continues, or how it ended."""
        for name, started in list(self._started.items()):
            exit_code = started.process.poll()
            if exit_code is not None:
                outcome = _outcome(started, exit_code)
                self._note(name, {"running": None, "last": outcome})
                self._report(name, started.times, outcome)
                del self._started[name]
            elif self._now() - started.seen_s >= HEARTBEAT_S:
                started.seen_s = self._now()
                self._note(name, {"running": Running(due_s=started.due_s, scheduler=self._name, seen_s=self._now())})

    def stop(self) -> None:
        """Ask every run to end in an orderly way."""
        for started in self._started.values():
            started.process.terminate()

    def _note(self, name: str, update: dict[str, Any]) -> None:
        """Change the schedule of an own run; nothing to change if it was deleted or given to another scheduler."""

        def apply(schedule: Schedule) -> Schedule | None:
            own = schedule.running and schedule.running.scheduler == self._name
            return schedule.model_copy(update=update) if own else None

        with suppress(LaunchError):
            self._schedules.change(name, apply)

    def _consider(self, schedule: Schedule) -> None:
        now_s, times = self._now(), schedule.times
        due_s = times.latest_between(max(schedule.settled_s, now_s - GRACE_S), now_s)
        if due_s is None:
            due_s = times.next_after(schedule.settled_s)
            if due_s > now_s:
                return
        with suppress(lease.LeaseTimeout, LaunchError):  # another scheduler decides, or it was deleted
            with lease.hold(self._schedules.store, f"leases/schedule-{schedule.name}", ttl_s=30.0, wait_s=0.0) as held:
                decided = self._decide(schedule.name, due_s, held)
            if decided and decided.running and decided.running.due_s == due_s:
                self._fire(decided, due_s)
            elif decided and decided.last:
                self._report(schedule.name, times, decided.last)

    def _goes_on(self, schedule: Schedule, now_s: float) -> float | None:
        """The time of the schedule's run that has not ended."""
        if own := self._started.get(schedule.name):
            return own.due_s
        return schedule.running.due_s if schedule.running and schedule.goes_on(now_s) else None

    def _decide(self, name: str, due_s: float, held: lease.Lease) -> Schedule | None:
        """The schedule with this time settled: running from now on, skipped or missed. None: it was settled already."""

        def settle(schedule: Schedule) -> Schedule | None:
            held.check()
            now_s = self._now()
            if not schedule.enabled or schedule.settled_s >= due_s:
                return None
            update: dict[str, Any] = {"settled_s": due_s}
            if due_s < now_s - GRACE_S:
                why = "no scheduler was there, and missed times are not caught up"
                update = {"settled_s": now_s - GRACE_S, "last": DueOutcome(due_s=due_s, state="MISSED", detail=why)}
            elif (former_s := self._goes_on(schedule, now_s)) is not None:
                why = f"the run of {schedule.times.shown(former_s)} continues"
                update["last"] = DueOutcome(due_s=due_s, state="SKIPPED", detail=why)
            else:
                update["running"] = Running(due_s=due_s, scheduler=self._name, seen_s=now_s)
            return schedule.model_copy(update=update)

        return self._schedules.change(name, settle)

    def _fire(self, schedule: Schedule, due_s: float) -> None:
        try:
            process, log = self._launch(schedule, due_s)
        except (OSError, ValueError) as error:  # a full disk, or a recipe from before an upgrade: the others continue
            outcome = DueOutcome(due_s=due_s, state="FAILURE", detail=f"cannot start: {' '.join(str(error).split())}")
            self._note(schedule.name, {"running": None, "last": outcome})
            self._report(schedule.name, schedule.times, outcome)
            return
        self._started[schedule.name] = _Started(process, log, schedule.times, due_s, self._now())
        self._say(f"{schedule.name}: due {schedule.times.shown(due_s)}: {schedule.pipeline} starts, log {log}")

    def _report(self, name: str, times: Cron, outcome: DueOutcome) -> None:
        detail = f": {outcome.detail}" if outcome.detail else ""
        self._say(f"{name}: due {times.shown(outcome.due_s)}: {outcome.state.lower()}{detail}")


def _outcome(started: _Started, exit_code: int) -> DueOutcome:
    if exit_code == 0:
        return DueOutcome(due_s=started.due_s, state="SUCCESS")
    return DueOutcome(due_s=started.due_s, state="FAILURE", detail=f"exit code {exit_code}, log {started.log}")


def launch_in(home: Path) -> Launch:
    """Runs are `flashslm run` in separate processes; recipe and log are below `home`."""

    def launch(schedule: Schedule, due_s: float) -> tuple[Process, Path]:
        config, secrets = _with_hook(schedule, home)
        directory = home / "schedules" / schedule.name / time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(due_s))
        private_directory(directory)
        command = [sys.executable, "-m", "flashslm", "run", "--pipeline", schedule.pipeline]
        command += ["--config", str(directory / "recipe.yaml"), "--home", str(home)]
        with private_files(), (directory / "run.log").open("ab") as log:
            write_whole(directory / "recipe.yaml", config_file.dump(config))
            process = subprocess.Popen(
                command,
                env=os.environ | secrets,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C reaches the run once: by `Scheduler.stop`
            )
        return process, directory / "run.log"

    return launch


def _with_hook(schedule: Schedule, home: Path) -> tuple[RunConfig, dict[str, str]]:
    """The recipe with the hook that is kept in this home, and the environment that holds the hook's secrets."""
    config = schedule.config
    if not schedule.hook_sha256:
        return config, {}
    hook = kept_hook.read(home, schedule.name, schedule.hook_sha256)
    gate = config.gate.model_copy(update={"promotion_hook": hook})
    return config.model_copy(update={"gate": gate}), hook.environment(os.environ)


def serve(scheduler: Scheduler, say: Callable[[str], None]) -> int:
    """Tick until a signal comes, then wait for the runs to end (another signal kills them).

    Returns 128 + the signal's number, as a shell does.
    """
    trouble = ""
    with StopSignals() as stop:
        while not stop.received:
            try:
                scheduler.tick()
                trouble = ""
            except StoreError as error:
                if str(error) != trouble:
                    trouble = str(error)
                    say(f"{trouble}; trying again")
            time.sleep(_POLL_S)
        asked = 0
        while scheduler.busy:
            if len(stop.received) > asked:
                asked = len(stop.received)
                say("stopping: waiting for runs to end (a second Ctrl-C kills them now)")
                scheduler.stop()
            with suppress(StoreError):
                scheduler.look_after_runs()
            time.sleep(0.1)
    return 128 + stop.received[0]
