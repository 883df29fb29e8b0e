"""How soon changes are due, and how long failures wait."""

from smsnapd.daemon.pace import Pace, Retry

PACE = Pace(quiet_s=5.0, incremental_s=300.0, rescan_s=3600.0)


def test_quiet_counts_from_the_last_change_and_incremental_from_the_first() -> None:
    assert PACE.due_s(first_s=100.0, last_s=100.0) == 105.0
    assert PACE.due_s(first_s=100.0, last_s=350.0) == 355.0
    assert PACE.due_s(first_s=100.0, last_s=399.0) == 400.0


def test_a_poll_with_no_known_change_is_due_at_once() -> None:
    assert PACE.due_s(first_s=100.0, last_s=0.0) <= 100.0


def test_waits_grow_to_five_minutes_and_never_beyond() -> None:
    retry = Retry(jitter=lambda: 0.999999)
    waits = [retry.failed(now_s=10.0) for _ in range(2000)]
    assert waits == sorted(waits) and 1.0 <= waits[0] <= 2.0 and 299.0 < waits[-1] <= 300.0
    assert retry.failures == 2000


def test_the_jitter_is_full_but_for_the_first_second() -> None:
    retry = Retry(jitter=lambda: 0.0)
    assert {retry.failed(now_s=0.0) for _ in range(50)} == {1.0}


def test_success_ends_the_waiting() -> None:
    retry = Retry(jitter=lambda: 0.0)
    assert not retry.is_waiting(0.0)
    retry.failed(now_s=50.0)
    assert retry.is_waiting(50.5) and not retry.is_waiting(51.0)
    retry.succeeded()
    assert (retry.failures, retry.at_s, retry.is_waiting(50.5)) == (0, None, False)
