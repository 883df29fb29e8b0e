"""The daemon's totals by the month: they survive it, are written now and then, and harm nobody."""

from __future__ import annotations

import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest

from smsnapd.daemon.totals import Month, RequestTotals, read_totals, totals_file
from smsnapd.store.counting import Requests

URL = "s3://bucket/prefix"
ONE = Requests(put=1, bytes_up=100)


class Clocks:
    """The wall clock, and the one that never jumps."""

    def __init__(self) -> None:
        self.now = datetime(2026, 11, 30, 23, 59, tzinfo=UTC).timestamp()
        self.steady = 1000.0

    def pass_by(self, seconds: float) -> None:
        self.now += seconds
        self.steady += seconds

    def totals(self, file: Path, url: str = URL) -> RequestTotals:
        return RequestTotals(file, url, lambda: self.now, lambda: self.steady)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return totals_file(tmp_path / "state", "nb")


def test_totals_survive_the_daemon(file: Path) -> None:
    clocks = Clocks()
    first = clocks.totals(file)
    began = clocks.now
    first.take_in(ONE)
    clocks.pass_by(5)
    first.take_in(ONE)
    first.close()
    clocks.pass_by(5)
    second = clocks.totals(file)
    month = second.take_in(Requests(get=3))
    assert month == Month("2026-11", began, clocks.now, Requests(put=2, get=3, bytes_up=200))
    second.close()
    assert read_totals(file, URL) == (month,)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_month_begins_at_zero_and_thirteen_are_kept(file: Path) -> None:
    clocks = Clocks()
    totals = clocks.totals(file)
    totals.take_in(ONE)
    clocks.pass_by(120)
    assert totals.take_in(Requests(get=1)) == Month("2026-12", clocks.now, clocks.now, Requests(get=1))
    for _ in range(15):
        clocks.pass_by(31 * 86400)
        totals.take_in(ONE)
    totals.close()
    months = [month.month for month in read_totals(file, URL)]
    assert len(months) == 13
    assert months == sorted(months)


def test_it_is_written_at_most_once_a_minute_and_only_with_news(file: Path) -> None:
    clocks = Clocks()
    totals = clocks.totals(file)
    totals.take_in(Requests())
    totals.close()
    assert not file.exists()
    writes = 0
    for _ in range(125):
        before = file.read_bytes() if file.exists() else b""
        totals.take_in(ONE)
        writes += file.exists() and file.read_bytes() != before
        clocks.pass_by(1)
    assert writes == 3
    clocks.pass_by(1000)
    file.unlink()
    totals.take_in(Requests())
    assert file.exists()  # what came since the last writing


def test_another_repository_is_counted_anew(file: Path) -> None:
    clocks = Clocks()
    totals = clocks.totals(file)
    totals.take_in(ONE)
    totals.close()
    assert read_totals(file, "s3://other") == ()
    assert clocks.totals(file, "s3://other").take_in(ONE).requests == ONE


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"url": 1}', b'{"url": "s3://bucket/prefix", "months": [1]}']
)
def test_a_damaged_file_is_told_and_replaced(
    file: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    file.parent.mkdir()
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"."):
        read_totals(file, URL)
    totals = Clocks().totals(file)
    assert "counted anew" in caplog.text
    totals.take_in(ONE)
    assert read_totals(file, URL)[0].requests == ONE


def test_a_place_that_cannot_be_written_to_stops_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "state").write_bytes(b"a file")
    clocks = Clocks()
    totals = clocks.totals(totals_file(tmp_path / "state", "nb"))
    for _ in range(3):
        assert totals.take_in(ONE).requests.put
        clocks.pass_by(100)
    totals.close()
    assert caplog.text.count("was not kept") == 1
