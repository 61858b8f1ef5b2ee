"""Cron in a named time zone, with the two days on which a zone's clock changes."""

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from flashslm.launch.schedule.cron import Cron, CronError


def at(text: str, zone: str = "Europe/Berlin", fold: int = 0) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold).timestamp()


def due(expression: str, after: str, count: int, zone: str = "Europe/Berlin") -> list[str]:
    cron, time_s, found = Cron.parse(expression, zone), at(after, zone), []
    for _ in range(count):
        time_s = cron.next_after(time_s)
        found.append(cron.shown(time_s))
    return found


def test_a_time_that_spring_skips_fires_after_the_gap() -> None:
    assert due("30 2 * * *", "2026-03-28 03:00", 3) == [
        "2026-03-29 03:00:00+02:00",
        "2026-03-30 02:30:00+02:00",
        "2026-03-31 02:30:00+02:00",
    ]


def test_a_time_that_autumn_repeats_fires_once() -> None:
    assert due("30 2 * * *", "2026-10-24 03:00", 3) == [
        "2026-10-25 02:30:00+02:00",
        "2026-10-26 02:30:00+01:00",
        "2026-10-27 02:30:00+01:00",
    ]
    between = at("2026-10-25 02:10", fold=1)  # asked in the second of the two hours
    assert Cron.parse("30 2 * * *", "Europe/Berlin").next_after(between) == at("2026-10-26 02:30")


def test_steps_go_on_evenly_through_both_changes() -> None:
    autumn = due("*/30 * * * *", "2026-10-25 01:30", 6)
    assert [t[11:] for t in autumn] == [
        "02:00:00+02:00",
        "02:30:00+02:00",
        "02:00:00+01:00",
        "02:30:00+01:00",
        "03:00:00+01:00",
        "03:30:00+01:00",
    ]
    spring = due("0 * * * *", "2026-03-29 00:30", 3)
    assert [t[11:] for t in spring] == ["01:00:00+01:00", "03:00:00+02:00", "04:00:00+02:00"]


def test_zones_differ() -> None:
    noon = Cron.parse("0 12 * * *", "America/New_York").next_after(at("2026-07-01 00:00", "UTC"))
    assert noon == at("2026-07-01 16:00", "UTC")


def test_six_fields_begin_with_the_second() -> None:
    assert due("15 30 2 * * *", "2026-07-01 02:30", 2) == ["2026-07-01 02:30:15+02:00", "2026-07-02 02:30:15+02:00"]
    assert due("15 30 2 * * *", "2026-07-01 02:31", 1) == ["2026-07-02 02:30:15+02:00"]


def test_weekdays_months_and_either_day() -> None:
    assert due("0 6 * * mon-fri", "2026-07-03 07:00", 2)[0].startswith("2026-07-06 06:00")
    assert due("0 6 1 JAN,JUL ?", "2026-07-01 07:00", 1) == ["2027-01-01 06:00:00+01:00"]
    assert [t[:10] for t in due("0 0 13 * 5", "2026-03-01 12:00", 3)] == ["2026-03-06", "2026-03-13", "2026-03-20"]
    assert due("0 0 29 2 *", "2026-03-01 00:00", 1) == ["2028-02-29 00:00:00+01:00"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0 2 * * *", "0 0 2 * * *"), ("5 0 2 * * 0", "5 0 2 * * 0"), ("0 2 ? * sun", "0 0 2 * * SUN")],
)
def test_the_form_of_kfp_has_six_fields(text: str, expected: str) -> None:
    assert Cron.parse(text, "UTC").six_fields == expected


def test_latest_between() -> None:
    cron = Cron.parse("0 * * * *", "UTC")
    assert cron.latest_between(at("2026-01-01 00:00", "UTC"), at("2026-01-01 05:59", "UTC")) == at(
        "2026-01-01 05:00", "UTC"
    )
    assert cron.latest_between(at("2026-01-01 05:00", "UTC"), at("2026-01-01 05:59", "UTC")) is None
    assert cron.latest_between(at("2026-01-01 05:59", "UTC"), at("2026-01-01 06:00", "UTC")) is not None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0 2 * *", "has 4 fields; allowed: five fields"),
        ("@daily", "has 1 fields"),
        ("60 * * * *", "Bad minute"),
        ("*/0 * * * *", "Bad minute"),
        ("0 2 * * 7", "Sunday is 0 or SUN"),
        ("0 2 L * *", "cannot be read"),
        ("0 2 * * MON#2", "cannot be read"),
        ("0-5 0 2 * * *", "the second, one number"),
        ("60 0 2 * * *", "the second, one number"),
        ("0 2 * * FRX", "cannot be read"),
        ("0 0 30 2 *", "Bad day-of-month"),
    ],
)
def test_what_cannot_be_read_is_refused_with_what_can(text: str, expected: str) -> None:
    with pytest.raises(CronError) as caught:
        Cron.parse(text, "UTC")
    assert expected in str(caught.value) and f"'{text}'" in str(caught.value)


@pytest.mark.parametrize("zone", ["Mars/Olympus", "../etc/passwd", "", "/etc/localtime"])
def test_unknown_zone(zone: str) -> None:
    with pytest.raises(CronError, match="is unknown: give an IANA name such as Europe/Berlin"):
        Cron.parse("0 2 * * *", zone)
