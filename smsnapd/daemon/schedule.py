"""When the calendar says that something is due. The only user of APScheduler: its triggers, not its threads.

What is due is asked for and not told, so what was missed while the machine slept, or while a run was under
way, is due once, and a clock that jumps does no harm.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import datetime
from typing import Final

from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.combining import OrTrigger
from apscheduler.triggers.cron import CronTrigger

from smsnapd.errors import ConfigError

_DAYS: Final = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_DAY_ITEM: Final = re.compile(r"(?:(\*)|([0-7]|[a-z]{3})(?:-([0-7]|[a-z]{3}))?)(?:/([1-9][0-9]?))?")
_JUMP_S: Final = 90.0
"""How far the wall clock may part from the monotonic one between two looks and count as steady."""


class Calendar:
    """One cron expression as crontab(5) understands it, in local time: is it due? For one thread.

    `""` is never due. It is due once when at least one of its times has come since it was last done.
    """

    def __init__(
        self,
        expression: str,
        key: str,
        *,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`key` names the expression in the ConfigError that a wrong one raises."""
        self.expression = expression
        self._wall = wall
        self._monotonic = monotonic
        self._trigger = _trigger(expression, key) if expression else None
        self._offset = wall() - monotonic()
        self._next = self._after(wall())

    @property
    def next_s(self) -> float | None:
        """The next time that it is due, in seconds since the epoch; None is never."""
        return self._next

    def done(self, when_s: float | None = None) -> None:
        """It was done, now or at a time that is known from elsewhere: what is missed since then is due."""
        now = self._wall()
        # A time in the future is another clock's mistake; waiting for it could last for ever.
        self._next = self._after(now if when_s is None else min(when_s, now))

    def is_due(self) -> bool:
        """Whether one of its times has come; it stays due until `done`."""
        now = self._wall()
        offset = now - self._monotonic()
        if offset < self._offset - _JUMP_S and not (self._next is not None and self._next <= now):
            # The clock was set back: the next time is counted from the new now.
            self._next = self._after(now)
        self._offset = offset
        return self._next is not None and self._next <= now

    def _after(self, when_s: float) -> float | None:
        if self._trigger is None:
            return None
        when = datetime.fromtimestamp(when_s).astimezone()
        found = self._trigger.get_next_fire_time(when, when)
        return None if found is None else float(found.timestamp())


def _trigger(expression: str, key: str) -> BaseTrigger:
    try:
        minute, hour, day, month, weekday = expression.split()
        common = {"minute": minute, "hour": hour, "month": month}
        weekdays = _weekdays(weekday.lower())
        if day == "*" or weekday == "*":
            return CronTrigger(day=day, day_of_week=weekdays, **common)
        # crontab(5): if both are restricted, either will do. APScheduler asks for both.
        return OrTrigger([CronTrigger(day=day, **common), CronTrigger(day_of_week=weekdays, **common)])
    except (ValueError, TypeError) as error:
        hint = 'five fields, like "0 3 * * sun": minute, hour, day of the month, month, day of the week'
        raise ConfigError(f"use {key} {expression!r}", str(error), hint) from error


def _weekdays(field: str) -> str:
    """A day-of-week field with names only: APScheduler counts from Monday, crontab(5) from Sunday."""
    if field == "*":
        return field
    found: list[int] = []
    for item in field.split(","):
        match = _DAY_ITEM.fullmatch(item)
        if match is None:
            raise ValueError(f"{item!r} is no day of the week")
        every, first, last, step = match.groups()
        low = 0 if every else _day(first)
        high = 6 if every or (step and not last) else _day(last or first)
        # A range may run over the week's end: fri-sun.
        high += 7 if high < low else 0
        found.extend(day % 7 for day in range(low, high + 1, int(step or 1)))
    return ",".join(_DAYS[day] for day in sorted(set(found)))


def _day(text: str) -> int:
    if text.isdecimal():
        return int(text)
    if text not in _DAYS:
        raise ValueError(f"{text!r} is no day of the week")
    return _DAYS.index(text)
