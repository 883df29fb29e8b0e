"""The throttle: how many are let in, who comes first, what a refusal does. Nothing here sleeps."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smsnapd.store.throttle import Throttle


def refused(throttle: Throttle, times: int = 1) -> None:
    for _ in range(times):
        with throttle.turn() as turn:
            turn.refuse()


def answered(throttle: Throttle, times: int) -> None:
    for _ in range(times):
        with throttle.turn():
            pass


def test_refusals_halve_and_success_raises_slowly() -> None:
    throttle = Throttle(16)
    windows = [throttle.window]
    for _ in range(5):
        refused(throttle)
        windows.append(throttle.window)
    assert windows == [16, 8, 4, 2, 1, 1]
    answered(throttle, 1)
    assert throttle.window == 2
    answered(throttle, 4)
    assert 2 < throttle.window <= 4  # about one more for each round of answers, not one for each answer
    answered(throttle, 200)
    assert throttle.window == 16


def test_what_was_under_way_together_is_refused_once() -> None:
    throttle = Throttle(8)
    inside, leave = threading.Barrier(9), threading.Event()

    def request(_: int) -> None:
        with throttle.turn() as turn:
            inside.wait(60)
            leave.wait(60)
            turn.refuse()

    with ThreadPoolExecutor(8) as threads:
        done = threads.map(request, range(8))
        inside.wait(60)
        leave.set()
        list(done)
    assert throttle.window == 4
    refused(throttle)
    assert throttle.window == 2


def test_other_errors_say_nothing_about_the_pace() -> None:
    throttle = Throttle(4)
    refused(throttle)
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), throttle.turn():
            raise error
    assert throttle.window == 2
    answered(throttle, 1)


def test_a_refusal_counts_that_left_with_an_error() -> None:
    throttle = Throttle(4)
    with pytest.raises(ValueError), throttle.turn() as turn:
        turn.refuse()
        raise ValueError
    assert throttle.window == 2


@pytest.mark.parametrize("cuts", [0, 1, 4])
def test_never_more_at_once_than_the_window(cuts: int) -> None:
    throttle = Throttle(8)
    refused(throttle, cuts)
    lock, under_way, seen = threading.Lock(), [0], []

    def request(_: int) -> None:
        nonlocal throttle
        with throttle.turn():
            with lock:
                under_way[0] += 1
                seen.append(under_way[0] <= throttle.window)
            with lock:
                under_way[0] -= 1

    with ThreadPoolExecutor(24) as threads:
        list(threads.map(request, range(300)))
    assert all(seen)
    assert throttle.window == 8


def test_first_come_first_served() -> None:
    throttle = Throttle(1)
    order: list[int] = []

    def request(number: int) -> None:
        with throttle.turn():
            order.append(number)

    threads = [threading.Thread(target=request, args=(number,)) for number in range(6)]
    with throttle.turn():
        for number, thread in enumerate(threads, start=1):
            thread.start()
            while len(throttle._waiting) < number:
                pass
    for thread in threads:
        thread.join(60)
    assert order == list(range(6))


@given(st.lists(st.booleans(), max_size=200))
def test_the_window_stays_in_its_bounds(refusals: list[bool]) -> None:
    throttle = Throttle(16)
    for is_refused in refusals:
        before = throttle.window
        refused(throttle) if is_refused else answered(throttle, 1)
        assert 1 <= throttle.window <= 16
        assert throttle.window <= before if is_refused else throttle.window >= before
