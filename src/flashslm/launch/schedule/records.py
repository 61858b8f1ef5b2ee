"""Local schedules: records in the object store, changed by conditional puts so that any process may change them."""

import logging
import re
from collections.abc import Callable
from typing import Any, Literal

from pydantic import BaseModel, Field

from flashslm.config import RunConfig
from flashslm.infra.storage.errors import ObjectCorrupt, PreconditionFailed
from flashslm.infra.storage.object_store import ObjectStore
from flashslm.launch.processes import LaunchError
from flashslm.launch.schedule.cron import Cron

SILENCE_S = 120.0  # after which the scheduler of a run counts as gone
_PREFIX = "schedules/"
_log = logging.getLogger(__name__)
NAME = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"


class Running(BaseModel):
    """A run that a scheduler started. It says so again and again: silence means that the scheduler is gone."""

    due_s: float
    scheduler: str
    seen_s: float


class DueOutcome(BaseModel):
    """What came of one time that was due."""

    due_s: float
    state: Literal["SUCCESS", "FAILURE", "SKIPPED", "MISSED"]
    detail: str = ""


class Schedule(BaseModel):
    """A pipeline, a recipe and when to run them. Times are POSIX seconds."""

    name: str = Field(pattern=NAME)
    pipeline: str
    cron: str
    time_zone: str
    recipe: dict[str, Any]  # without its promotion hook, which the store must not decide
    hook_sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")  # of the hook's file in the maker's home
    enabled: bool = True
    settled_s: float  # everything that was due up to here has been decided
    running: Running | None = None
    last: DueOutcome | None = None

    def goes_on(self, now_s: float) -> bool:
        """Whether a run of it has not ended, as far as its scheduler says."""
        return self.running is not None and now_s - self.running.seen_s < SILENCE_S

    @property
    def times(self) -> Cron:
        return Cron.parse(self.cron, self.time_zone)

    @property
    def config(self) -> RunConfig:
        """The recipe. Raises ValueError where the record itself names a hook, which `flashslm` never writes."""
        config = RunConfig.model_validate(self.recipe)
        if config.gate.promotion_hook.command or config.gate.promotion_hook.url:
            raise ValueError("its record in the store names a promotion hook, which only a recipe of this home may")
        return config


def check_name(name: str) -> None:
    """Raise LaunchError for a name that is none."""
    if not re.fullmatch(NAME, name):
        raise LaunchError(f"schedule '{name}': a name has up to 63 small letters, digits and '-', none at its ends")


class Schedules:
    """The schedules of one object store."""

    def __init__(self, store: ObjectStore):
        self.store = store

    def names(self) -> list[str]:
        keys = self.store.list(_PREFIX)
        return [key.removeprefix(_PREFIX).removesuffix(".json") for key in keys if key.endswith(".json")]

    def all(self) -> list[Schedule]:
        """Every schedule whose record can be read; the others are said in a warning."""
        schedules = []
        for name in self.names():
            try:
                if schedule := self.find(name):
                    schedules.append(schedule)
            except (ValueError, ObjectCorrupt) as error:
                why = " ".join(str(error).split())
                _log.warning("schedule '%s' cannot be read (%s): delete it and create it again", name, why)
        return schedules

    def find(self, name: str) -> Schedule | None:
        found = self._read(name)
        return found[0] if found else None

    def create(self, schedule: Schedule) -> Schedule:
        """Store a new schedule; one of the same name and content is left as it is. LaunchError for another content."""
        try:
            self.store.put_json(_key(schedule.name), schedule.model_dump(), if_absent=True)
        except PreconditionFailed as error:
            there = self.find(schedule.name)
            same = {"pipeline", "cron", "time_zone", "recipe", "hook_sha256"}
            if there is None or there.model_dump(include=same) != schedule.model_dump(include=same):
                raise LaunchError(
                    f"schedule '{schedule.name}' exists with other settings: delete it first, or choose another name"
                ) from error
            return there
        return schedule

    def change(self, name: str, to: Callable[[Schedule], Schedule | None]) -> Schedule | None:
        """Replace a schedule by what `to` makes of it (None: leave it), again if another process changed it meanwhile.

        Returns what was stored, or None. Raises LaunchError if the schedule does not exist.
        """
        while True:
            found = self._read(name)
            if found is None:
                raise self._unknown(name)
            changed = to(found[0].model_copy(deep=True))
            if changed is None:
                return None
            try:
                self.store.put_json(_key(name), changed.model_dump(), if_match=found[1])
            except PreconditionFailed:
                continue
            return changed

    def set_enabled(self, name: str, enabled: bool, now_s: float) -> None:
        """Pause or resume; what was due during the pause stays undone."""

        def switch(schedule: Schedule) -> Schedule | None:
            if schedule.enabled == enabled:
                return None
            return schedule.model_copy(update={"enabled": enabled, "settled_s": max(schedule.settled_s, now_s)})

        self.change(name, switch)

    def delete(self, name: str) -> None:
        """Remove a schedule; a run of it continues. LaunchError if there is none."""
        if name not in self.names():
            raise self._unknown(name)
        self.store.delete([_key(name)])

    def _unknown(self, name: str) -> LaunchError:
        known = ", ".join(self.names()) or "none"
        return LaunchError(f"schedule '{name}' does not exist; there are: {known}")

    def _read(self, name: str) -> tuple[Schedule, str] | None:
        found = self.store.get_json(_key(name))
        return (Schedule.model_validate(found[0]), found[1]) if found else None


def _key(name: str) -> str:
    return f"{_PREFIX}{name}.json"
