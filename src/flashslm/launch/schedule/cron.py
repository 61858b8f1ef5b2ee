"""Cron expressions in a named time zone: when a schedule is due, and the form KFP wants.

Where a zone's clock changes twice a year it is as with Debian's cron: a fixed time skipped by the start of summer time
fires right after the gap, one repeated at its end fires once, "every N minutes" and "every hour" continue evenly.
"""

import re
from dataclasses import dataclass
from datetime import datetime
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError
from cronsim.cronsim import SYMBOLIC_DAYS, SYMBOLIC_MONTHS

_FIELD = re.compile(r"[0-9A-Za-z*,/?-]+")
_NAMES = {*SYMBOLIC_DAYS, *SYMBOLIC_MONTHS}
_ALLOWED = (
    "allowed: five fields (minute hour day month weekday), or six with the second, one number, before them; "
    "numbers, names, lists, ranges and steps; Sunday is 0 or SUN"
)


class CronError(ValueError):
    """A time that cannot be read; the message says what can."""


@dataclass(frozen=True)
class Cron:
    """`expression` has five fields; times are POSIX seconds."""

    expression: str
    second: int
    zone: ZoneInfo

    @classmethod
    def parse(cls, text: str, time_zone: str) -> "Cron":
        """Read what both KFP (robfig/cron) and the local scheduler understand. Raises CronError."""
        fields = text.split()
        if len(fields) not in (5, 6):
            raise CronError(f"cron '{text}' has {len(fields)} fields; {_ALLOWED}")
        second, five = (fields[0], fields[1:]) if len(fields) == 6 else ("0", fields)
        wrong = [field for field in fields if not _FIELD.fullmatch(field) or set(_words(field)) - _NAMES]
        if wrong or re.search("7", five[4]) or not (second.isdigit() and int(second) < 60):
            raise CronError(f"cron '{text}' cannot be read; {_ALLOWED}")
        try:
            zone = ZoneInfo(time_zone)
        except (KeyError, ValueError, OSError) as error:
            raise CronError(f"time zone '{time_zone}' is unknown: give an IANA name such as Europe/Berlin") from error
        cron = cls(" ".join(five).replace("?", "*").upper(), int(second), zone)
        try:
            cron.next_after(0.0)
        except CronSimError as error:
            raise CronError(f"cron '{text}': {error}; {_ALLOWED}") from error
        except StopIteration as error:
            raise CronError(f"cron '{text}' is never due: no month has such a day") from error
        return cron

    @property
    def six_fields(self) -> str:
        """The form of KFP, which reads five fields as second, minute, hour, day and month."""
        return f"{self.second} {self.expression}"

    def next_after(self, time_s: float) -> float:
        """The first time after `time_s`."""
        begin = datetime.fromtimestamp(time_s - self.second, self.zone)
        for minute in CronSim(self.expression, begin):
            due_s = minute.timestamp() + self.second  # adding a timedelta would lose which of two equal hours it is
            if due_s > time_s:
                return due_s
        raise StopIteration

    def latest_between(self, after_s: float, until_s: float) -> float | None:
        """The last time in (after_s, until_s], or None."""
        latest, due_s = None, self.next_after(after_s)
        while due_s <= until_s:
            latest, due_s = due_s, self.next_after(due_s)
        return latest

    def shown(self, time_s: float) -> str:
        """A time as a person in the zone reads it."""
        return datetime.fromtimestamp(time_s, self.zone).isoformat(sep=" ", timespec="seconds")


def _words(field: str) -> list[str]:
    return re.findall("[A-Z]+", field.upper())
