"""When and how long the store waits before it tries again."""

from __future__ import annotations

import pytest

from smsnapd.errors import ObjectMissingError, StoreError
from smsnapd.store.retry import Backoff


class Flaky:
    """Raises `errors` one after the other, then returns "done"."""

    def __init__(self, *errors: StoreError) -> None:
        self.errors = list(errors)
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def transient() -> StoreError:
    return StoreError("store x", "the server is busy", "wait", transient=True)


def test_waits_grow_to_the_cap_and_are_scaled_by_the_jitter() -> None:
    waits: list[float] = []
    jitter = iter([1.0, 0.5, 0.25, 0.0, 1.0])
    backoff = Backoff(6, base_s=1.0, cap_s=5.0, sleep=waits.append, jitter=lambda: next(jitter))
    assert backoff.run(Flaky(*[transient()] * 5)) == "done"
    assert waits == [1.0, 1.0, 1.0, 0.0, 5.0]


def test_permanent_errors_are_not_repeated() -> None:
    for error in (StoreError("store x", "denied"), ObjectMissingError("read x", "there is none")):
        flaky = Flaky(error)
        with pytest.raises(StoreError) as caught:
            Backoff(5, sleep=lambda _: pytest.fail("waited")).run(flaky)
        assert caught.value is error
        assert flaky.calls == 1


def test_a_permanent_error_ends_the_attempts() -> None:
    flaky = Flaky(transient(), StoreError("store x", "denied"))
    with pytest.raises(StoreError, match="denied"):
        Backoff(5, sleep=lambda _: None).run(flaky)
    assert flaky.calls == 2


@pytest.mark.parametrize("attempts", [1, 2, 5])
def test_the_last_error_is_told(attempts: int) -> None:
    flaky = Flaky(*[transient()] * 9)
    with pytest.raises(StoreError, match="the server is busy") as caught:
        Backoff(attempts, sleep=lambda _: None).run(flaky)
    assert caught.value.transient
    assert caught.value.hint == "wait"
    assert flaky.calls == attempts
    assert ("tried" in caught.value.why) == (attempts > 1)
