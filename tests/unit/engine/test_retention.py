"""What a policy lets go, against rules worded otherwise."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smsnapd.engine.retention import Point, Policy, kept

START = datetime(2026, 1, 1, tzinfo=UTC)


def at(moment: datetime, number: int = 0) -> Point:
    return Point(f"{number:016x}", int(moment.timestamp() * 1e6))


def every(step: timedelta, count: int) -> list[Point]:
    return [at(START + step * number, number) for number in range(count)]


def times(points: list[Point], policy: Policy, **more: object) -> list[str]:
    stay = kept(points, policy, **more)
    found = [point for point in points if point.snapshot in stay]
    return [datetime.fromtimestamp(point.time_us / 1e6, UTC).strftime("%m-%d %H:%M") for point in found]


def test_the_last_of_each_period_stays() -> None:
    points = every(timedelta(minutes=30), 48 * 40)
    assert times(points, Policy(hourly=3)) == ["02-09 21:30", "02-09 22:30", "02-09 23:30"]
    assert times(points, Policy(daily=2)) == ["02-08 23:30", "02-09 23:30"]
    assert times(points, Policy(weekly=2)) == ["02-08 23:30", "02-09 23:30"]  # the 8th was a Sunday
    assert times(points, Policy(monthly=5)) == ["01-31 23:30", "02-09 23:30"]
    assert times(points, Policy(yearly=5)) == ["02-09 23:30"]
    assert times(points, Policy(keep_within_s=3600)) == ["02-09 22:30", "02-09 23:00", "02-09 23:30"]
    assert times(points, Policy(hourly=1, daily=2, monthly=2)) == [
        "01-31 23:30",
        "02-08 23:30",
        "02-09 23:30",
    ]


def test_hours_without_a_point_do_not_count() -> None:
    points = [at(START + timedelta(days=30 * number), number) for number in range(5)]
    assert len(kept(points, Policy(hourly=3))) == 3


def test_nothing_asked_for_lets_nothing_go() -> None:
    points = every(timedelta(days=400), 9)
    assert len(kept(points, Policy())) == 9
    assert kept([], Policy(daily=1)) == set()


def test_what_is_pinned_stays() -> None:
    points = every(timedelta(days=1), 9)
    assert kept(points, Policy(hourly=1), pinned={points[3].snapshot, "ff" * 8}) == {
        points[3].snapshot,
        points[8].snapshot,
    }


def test_a_clock_that_went_back_lets_go_no_more_than_it_must() -> None:
    """The newest by order is the one that stays, and what seems to lie ahead of it counts as within."""
    points = [at(START + timedelta(hours=hours), number) for number, hours in enumerate((0, 1, 9, 10, 2, 3))]
    assert points[-1].snapshot in kept(points, Policy(daily=1))
    assert kept(points, Policy(keep_within_s=3600)) == {points[row].snapshot for row in (2, 3, 4, 5)}


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Policy)])
def test_each_alone_is_something(field: str) -> None:
    assert not Policy(**{field: 1}).keeps_all


any_points = st.lists(st.integers(0, 10**15), max_size=60).map(
    lambda found: [Point(f"{number:016x}", time_us) for number, time_us in enumerate(found)]
)
counts = st.integers(0, 6)


@given(any_points, st.builds(Policy, st.integers(0, 10**8), counts, counts, counts, counts, counts))
def test_whatever_the_times(points: list[Point], policy: Policy) -> None:
    stay = kept(points, policy)
    assert stay <= {point.snapshot for point in points}
    if points:
        assert points[-1].snapshot in stay
    if not policy.keeps_all and not policy.keep_within_s:
        total = policy.hourly + policy.daily + policy.weekly + policy.monthly + policy.yearly
        assert len(stay) <= total + 1
    # What stayed once stays as long as nothing comes: a second prune lets nothing more go.
    again = [point for point in points if point.snapshot in stay]
    assert kept(again, policy) == stay


@given(any_points, counts, counts)
def test_more_asked_for_keeps_more(points: list[Point], hourly: int, daily: int) -> None:
    assert kept(points, Policy(hourly=hourly + 1)) <= kept(points, Policy(hourly=hourly + 2, daily=daily))
