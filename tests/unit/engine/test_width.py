"""How many puts at once: by how long they take."""

from __future__ import annotations

import pytest

from smsnapd.engine.chain.width import Width
from smsnapd.errors import StoreError


class Way:
    """A way on which a put alone takes `seconds`, and each of several so many times that."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.now_s = 0.0
        self.width = Width(4, lambda: self.now_s)

    def put(self) -> int:
        """One put; the width after it."""
        assert self.width.timed(self._put) == "done"
        return self.width.now

    def _put(self) -> str:
        self.now_s += self.seconds * self.width.now
        return "done"


def test_it_grows_at_once_where_puts_are_quick() -> None:
    way = Way(0.1)
    assert way.width.now == 1
    assert [way.put() for _ in range(5)] == [2, 3, 4, 4, 4]


@pytest.mark.parametrize("seconds", [30, 300, 100_000])
def test_it_stays_at_one_on_a_slow_way(seconds: float) -> None:
    way = Way(seconds)
    assert {way.put() for _ in range(10)} == {1}


def test_it_comes_to_rest_between(seconds: float = 4.0) -> None:
    way = Way(seconds)
    assert [way.put() for _ in range(10)] == [2] * 10


def test_it_follows_a_way_that_changes() -> None:
    way = Way(0.1)
    assert [way.put() for _ in range(4)][-1] == 4
    way.seconds = 60
    assert [way.put() for _ in range(4)] == [2, 1, 1, 1]
    way.seconds = 0.5
    assert [way.put() for _ in range(4)] == [2, 3, 4, 4]


def test_what_fails_counts_as_slow() -> None:
    way = Way(0.1)
    assert [way.put() for _ in range(4)][-1] == 4

    def fail() -> None:
        raise StoreError("store it", "no network")

    with pytest.raises(StoreError):
        way.width.timed(fail)
    assert way.width.now == 2
