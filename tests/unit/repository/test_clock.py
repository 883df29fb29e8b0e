"""The store's clock, kept by ours: asked once a day, and when ours cannot be believed."""

from __future__ import annotations

import pytest

from smsnapd.repository.clock import JUMP_S, MEASURED_EVERY_S, StoreClock, steady_s


class Clocks:
    def __init__(self) -> None:
        self.store, self.steady, self.wall, self.asked = 1000.0, 50.0, 7.0, 0

    def ask(self) -> float:
        self.asked += 1
        return self.store

    def pass_by(self, seconds: float) -> None:
        self.store += seconds
        self.steady += seconds
        self.wall += seconds


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


@pytest.fixture
def clock(clocks: Clocks) -> StoreClock:
    return StoreClock(clocks.ask, steady=lambda: clocks.steady, wall=lambda: clocks.wall)


def test_it_is_asked_when_first_wanted_and_once_a_day(clocks: Clocks, clock: StoreClock) -> None:
    assert clocks.asked == 0
    for asked in (1, 2, 3):
        for _ in range(10):
            assert clock.now() == clocks.store
            assert clocks.asked == asked
            clocks.pass_by(MEASURED_EVERY_S / 10)
        clocks.pass_by(1)


def test_it_can_be_asked_at_any_time(clocks: Clocks, clock: StoreClock) -> None:
    clock.now()
    clocks.store += 3
    assert clock.now() == 1000.0
    assert clock.ask() == 1003.0
    assert clock.now() == 1003.0


@pytest.mark.parametrize("jump", [-86400 * 365.0, -JUMP_S - 1, JUMP_S + 1, 1e9])
def test_a_clock_that_was_set_makes_it_ask_once(clocks: Clocks, clock: StoreClock, jump: float) -> None:
    clock.now()
    clocks.wall += jump
    clocks.pass_by(10)
    assert [clock.now() for _ in range(3)] == [1010.0] * 3
    assert clocks.asked == 2


def test_a_clock_that_is_mended_slowly_is_no_matter(clocks: Clocks, clock: StoreClock) -> None:
    clock.now()
    clocks.wall += JUMP_S - 1
    clocks.pass_by(100)
    assert clock.now() == 1100.0 and clocks.asked == 1


def test_a_machine_that_was_held_unawares(clocks: Clocks, clock: StoreClock) -> None:
    """Its steady clock stood still; when its wall clock is put right, the store is asked."""
    clock.now()
    clocks.store += 3600
    clocks.wall += 3600
    assert clock.now() == 4600.0


def test_the_steady_clock_goes_forward() -> None:
    assert 0 < steady_s() <= steady_s()
