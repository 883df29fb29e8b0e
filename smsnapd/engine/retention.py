"""Which recovery points stay: the policy, applied to their times. Pure.

>>> points = [Point(f"{n:016x}", n * 3_600_000_000) for n in range(1, 49)]
>>> len(kept(points, Policy(hourly=3, daily=2)))
3
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Point(NamedTuple):
    """A recovery point: its snapshot's id, and its time in microseconds since the epoch."""

    snapshot: str
    time_us: int


@dataclass(frozen=True)
class Policy:
    """How many to keep: all of the last `keep_within_s` seconds, and of so many hours, days, … one each.

    An hour without a recovery point does not count as one. All of it is by the times of the recovery points,
    as counted back from the newest: what this machine's clock says is no matter.
    """

    keep_within_s: float = 0.0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0

    @property
    def keeps_all(self) -> bool:
        """Whether nothing at all is asked for, which lets nothing go."""
        return self == KEEP_ALL


KEEP_ALL: Final = Policy()


def kept(points: Sequence[Point], policy: Policy, pinned: Collection[str] = ()) -> set[str]:
    """The ids of those that stay, of `points` in the order of their sequence.

    The newest one stays in any case, and so do those that are `pinned`. Of an hour (day, ISO week, month,
    year; in UTC) the last one stays. Where a clock went back, order and not time says which is last.
    """
    if policy.keeps_all or not points:
        return {point.snapshot for point in points}
    newest = points[-1]
    since_us = newest.time_us - int(policy.keep_within_s * 1e6)
    stay = {newest.snapshot}
    if policy.keep_within_s:
        stay.update(point.snapshot for point in points if point.time_us >= since_us)
    for count, period in (
        (policy.hourly, _hour),
        (policy.daily, _day),
        (policy.weekly, _week),
        (policy.monthly, _month),
        (policy.yearly, _year),
    ):
        stay.update(_last_of_each(points, count, period))
    return stay | {point.snapshot for point in points if point.snapshot in pinned}


Period = Callable[[datetime], tuple[int, ...]]


def _last_of_each(points: Sequence[Point], count: int, period: Period) -> set[str]:
    """The last point of each of the newest `count` periods that have any."""
    last: dict[tuple[int, ...], str] = {}
    for point in reversed(points):
        if len(last) == count:
            break
        last.setdefault(period(_EPOCH + timedelta(microseconds=point.time_us)), point.snapshot)
    return set(last.values())


def _hour(moment: datetime) -> tuple[int, ...]:
    return (*_day(moment), moment.hour)


def _day(moment: datetime) -> tuple[int, ...]:
    return moment.year, moment.month, moment.day


def _week(moment: datetime) -> tuple[int, ...]:
    return tuple(moment.isocalendar()[:2])


def _month(moment: datetime) -> tuple[int, ...]:
    return moment.year, moment.month


def _year(moment: datetime) -> tuple[int, ...]:
    return (moment.year,)
