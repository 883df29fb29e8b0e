"""Calendars: what crontab(5) means, what was missed, and clocks that jump."""

import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from tzlocal import reload_localzone

from smsnapd.daemon.schedule import Calendar
from smsnapd.errors import ConfigError

DAY = 86400.0


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    reload_localzone()  # an earlier test's calendar may have had the machine's own looked up
    yield
    monkeypatch.undo()
    time.tzset()
    reload_localzone()


class Clock:
    """A wall clock that can be set, and a monotonic one that cannot."""

    def __init__(self, text: str) -> None:
        self.wall = datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()
        self.steady = 1000.0

    def pass_by(self, seconds: float) -> None:
        self.wall += seconds
        self.steady += seconds


def calendar(expression: str, clock: Clock) -> Calendar:
    return Calendar(expression, "schedule.full", wall=lambda: clock.wall, monotonic=lambda: clock.steady)


def upcoming(expression: str, start: str, count: int = 1) -> list[str]:
    """The next times from a moment on."""
    clock, found = Clock(start), []
    wanted = calendar(expression, clock)
    for _ in range(count):
        assert wanted.next_s is not None
        found.append(f"{datetime.fromtimestamp(wanted.next_s, UTC):%a %d %H:%M}")
        clock.pass_by(wanted.next_s - clock.wall)
        wanted.done()
    return found


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("0 3 * * sun", ["Sun 08 03:00", "Sun 15 03:00"]),
        ("0 3 * * 0", ["Sun 08 03:00", "Sun 15 03:00"]),
        ("0 3 * * 7", ["Sun 08 03:00", "Sun 15 03:00"]),
        ("0 3 * * 1-5", ["Tue 03 03:00", "Wed 04 03:00", "Thu 05 03:00", "Fri 06 03:00", "Mon 09 03:00"]),
        ("0 3 * * fri-sun", ["Fri 06 03:00", "Sat 07 03:00", "Sun 08 03:00", "Fri 13 03:00"]),
        ("0 3 * * 5-7", ["Fri 06 03:00", "Sat 07 03:00", "Sun 08 03:00", "Fri 13 03:00"]),
        ("0 3 * * */3", ["Wed 04 03:00", "Sat 07 03:00", "Sun 08 03:00"]),
        ("*/30 * * * *", ["Mon 02 12:30", "Mon 02 13:00"]),
        ("0 0 15 * mon", ["Mon 09 00:00", "Sun 15 00:00", "Mon 16 00:00"]),  # either will do
        ("15 4 1 * *", ["Tue 01 04:15"]),
    ],
)
def test_what_crontab_means(expression: str, expected: list[str]) -> None:
    assert upcoming(expression, "2026-11-02 12:00", len(expected)) == expected


@pytest.mark.parametrize("wrong", ["61 * * * *", "0 3 * * someday", "0 3 * * 8", "0 3 * *", "0 3 32 * *"])
def test_what_is_none_is_told_with_its_key(wrong: str) -> None:
    with pytest.raises(ConfigError, match=r"schedule\.full"):
        Calendar(wrong, "schedule.full")


def test_never() -> None:
    clock = Clock("2026-11-02 12:00")
    never = calendar("", clock)
    clock.pass_by(1000 * DAY)
    assert never.next_s is None and not never.is_due()
    never.done()
    assert never.next_s is None


def test_what_was_missed_many_times_is_due_once() -> None:
    clock = Clock("2026-11-02 12:00")
    hourly = calendar("0 * * * *", clock)
    assert not hourly.is_due()
    clock.pass_by(30 * DAY)
    assert hourly.is_due() and hourly.is_due()
    hourly.done()
    assert not hourly.is_due()
    clock.pass_by(3600)
    assert hourly.is_due()


def test_what_an_earlier_life_missed_is_due() -> None:
    clock = Clock("2026-11-09 12:00")
    weekly = calendar("0 3 * * sun", clock)
    weekly.done(clock.wall - 2 * DAY)  # on Saturday, and nobody was there on Sunday
    assert weekly.is_due()
    weekly.done(clock.wall - 0.5 * DAY)
    assert not weekly.is_due()


def test_a_clock_that_was_ahead_and_is_set_right_does_no_harm() -> None:
    clock = Clock("2036-01-01 00:00")
    daily = calendar("0 3 * * *", clock)
    clock.wall = datetime(2026, 11, 2, 12, tzinfo=UTC).timestamp()
    assert not daily.is_due()
    clock.pass_by(DAY)
    assert daily.is_due()


def test_a_clock_that_jumps_ahead_makes_one_run_due() -> None:
    clock = Clock("1970-01-02 00:00")
    daily = calendar("0 3 * * *", clock)
    clock.wall = datetime(2026, 11, 2, 12, tzinfo=UTC).timestamp()
    assert daily.is_due()
    daily.done()
    assert not daily.is_due()


def test_a_time_in_the_future_is_not_waited_for() -> None:
    clock = Clock("2026-11-02 12:00")
    daily = calendar("0 3 * * *", clock)
    daily.done(clock.wall + 1000 * DAY)
    clock.pass_by(DAY)
    assert daily.is_due()


def test_summer_time_begins_and_nothing_is_lost() -> None:
    os.environ["TZ"] = "Europe/Berlin"
    time.tzset()
    clock = Clock("2027-03-27 12:00")
    nightly = calendar("30 2 * * *", clock)  # on the 28th there is no 02:30
    clock.pass_by(2 * DAY)
    assert nightly.is_due()
    nightly.done()
    assert not nightly.is_due()
