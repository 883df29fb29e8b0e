"""Counting requests: what is billed as what, and totals."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from smsnapd.store.counting import Requests, Tally, kind_of


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ("PutObject", "put"),
        ("CreateMultipartUpload", "put"),
        ("PutObjectRetention", "put"),
        ("GetObject", "get"),
        ("HeadBucket", "head"),
        ("ListObjectsV2", "list"),
        ("ListObjectVersions", "list"),
        ("ListMultipartUploads", "list"),
        ("DeleteObject", "delete"),
        ("AbortMultipartUpload", "delete"),
    ],
)
def test_operations_are_counted_as_they_are_billed(operation: str, kind: str) -> None:
    assert kind_of(operation) == kind


def test_requests_add_up_and_can_be_told_apart() -> None:
    tally = Tally()
    tally.sent("put", 10)
    before = tally.total()
    tally.sent("list", 0)
    tally.received(700)
    tally.add(Requests(delete=2))
    assert tally.total() - before == Requests(list=1, delete=2, bytes_down=700)
    assert before == Requests(put=1, bytes_up=10)


def test_threads_lose_no_count() -> None:
    tally = Tally()
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: [tally.sent("get", 1) for _ in range(500)], range(8)))
    assert tally.total() == Requests(get=4000, bytes_up=4000)
