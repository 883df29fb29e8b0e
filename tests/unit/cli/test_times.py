"""Times as people type them, through changes of the clocks, and back."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smsnapd.cli.times import Selector, local_text, parse_selector, parse_time, utc_text
from smsnapd.errors import UsageError

BERLIN = ZoneInfo("Europe/Berlin")
NOW = int(datetime(2026, 11, 20, 14, 0, tzinfo=UTC).timestamp()) * 1_000_000 + 123_456
BETWEEN_1970_AND_2100 = st.integers(0, 4_102_444_800_000_000)


def meant(text: str, now_us: int = NOW) -> str:
    return utc_text(parse_time(text, now_us, BERLIN))


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("now", "2026-11-20T14:00:00.123456Z"),
        (" NOW ", "2026-11-20T14:00:00.123456Z"),
        ("2h ago", "2026-11-20T12:00:00.123456Z"),
        ("2 hours ago", "2026-11-20T12:00:00.123456Z"),
        ("90m ago", "2026-11-20T12:30:00.123456Z"),
        ("0s ago", "2026-11-20T14:00:00.123456Z"),
        ("1 day 3 hours ago", "2026-11-19T11:00:00.123456Z"),
        ("1d3h ago", "2026-11-19T11:00:00.123456Z"),
        ("2 Weeks ago", "2026-11-06T14:00:00.123456Z"),
        ("yesterday 14:00", "2026-11-19T13:00:00.000000Z"),
        ("yesterday 9:05:07", "2026-11-19T08:05:07.000000Z"),
        ("today 00:30", "2026-11-19T23:30:00.000000Z"),
        ("today", "2026-11-19T23:00:00.000000Z"),
        ("yesterday", "2026-11-18T23:00:00.000000Z"),
        ("2026-11-20", "2026-11-19T23:00:00.000000Z"),
        ("2026-11-20 12:00", "2026-11-20T11:00:00.000000Z"),
        ("2026-07-20 12:00", "2026-07-20T10:00:00.000000Z"),
        ("2026-11-20T12:00:00.5", "2026-11-20T11:00:00.500000Z"),
        ("2026-11-20T12:00:00.000001Z", "2026-11-20T12:00:00.000001Z"),
        ("2026-11-20 12:00-05:00", "2026-11-20T17:00:00.000000Z"),
        ("20261120T120000Z", "2026-11-20T12:00:00.000000Z"),
        ("2099-01-01 00:00", "2098-12-31T23:00:00.000000Z"),
    ],
)
def test_what_a_time_means(text: str, moment: str) -> None:
    assert meant(text) == moment


@pytest.mark.parametrize(
    "text",
    ["", "x", "ago", "2 ago", "h ago", "2h 3 ago", "-2h ago", "2h", "2 fortnights ago", "999999999w ago",
     "14:00", "yesterday 25:00", "yesterday noon", "today 12:60", "tomorrow 12:00", "2026-13-01",
     "2026-02-30", "2026-11-20 24:01", "0001-01-01", "9999-12-31T23:59:59-23:00", "1e9",
     "2026-11-20 12:00 CET"],
)  # fmt: skip
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        meant(text)
    assert repr(text) in caught.value.what
    assert "yesterday 14:00" in caught.value.hint


def test_an_hour_that_the_clocks_skipped() -> None:
    for text in ("2026-03-29 02:00", "2026-03-29 02:30", "2026-03-29 02:59:59"):
        with pytest.raises(UsageError, match="put forward over it"):
            meant(text)
    assert meant("2026-03-29 01:59:59") == "2026-03-29T00:59:59.000000Z"
    assert meant("2026-03-29 03:00") == "2026-03-29T01:00:00.000000Z"


def test_an_hour_that_the_clocks_showed_twice() -> None:
    with pytest.raises(UsageError, match="showed it twice") as caught:
        meant("2026-10-25 02:30")
    assert caught.value.hint.endswith("+02:00 or +01:00")
    assert meant("2026-10-25 02:30+02:00") == "2026-10-25T00:30:00.000000Z"
    assert meant("2026-10-25 02:30+01:00") == "2026-10-25T01:30:00.000000Z"
    assert meant("2026-10-25 01:59:59") == "2026-10-24T23:59:59.000000Z"
    assert meant("2026-10-25 03:00") == "2026-10-25T02:00:00.000000Z"


def test_relative_times_across_a_change_count_hours() -> None:
    after_the_change = parse_time("2026-10-25T12:00:00+01:00", 0, BERLIN)
    assert meant("1 day ago", after_the_change) == "2026-10-24T11:00:00.000000Z"
    assert meant("yesterday 12:00", after_the_change) == "2026-10-24T10:00:00.000000Z"


def test_yesterday_is_a_day_of_the_calendar_where_people_are() -> None:
    just_past_midnight = parse_time("2026-11-20T00:30:00+01:00", 0, BERLIN)
    assert meant("yesterday 23:00", just_past_midnight) == "2026-11-19T22:00:00.000000Z"


@pytest.fixture
def zone_of_the_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    def use(name: str) -> None:
        monkeypatch.setenv("TZ", name)
        time.tzset()

    before = os.environ.get("TZ")
    yield use
    monkeypatch.undo()
    assert os.environ.get("TZ") == before
    time.tzset()


def test_the_zone_of_the_process(zone_of_the_process: Callable[[str], None]) -> None:
    zone_of_the_process("Europe/Berlin")
    assert utc_text(parse_time("2026-07-20 12:00", NOW)) == "2026-07-20T10:00:00.000000Z"
    assert utc_text(parse_time("2026-11-20 12:00", NOW)) == "2026-11-20T11:00:00.000000Z"
    for text in ("2026-03-29 02:30", "2026-10-25 02:30"):
        with pytest.raises(UsageError):
            parse_time(text, NOW)
    assert local_text(NOW) == "2026-11-20 15:00:00.123456"


@given(moment_us=BETWEEN_1970_AND_2100)
def test_a_shown_time_means_that_moment(moment_us: int) -> None:
    """What is shown can be given back, to the microsecond, or is refused as shown twice."""
    shown = local_text(moment_us, BERLIN)
    try:
        assert parse_time(shown, NOW, BERLIN) == moment_us
    except UsageError as error:
        assert "twice" in error.why


@given(moment_us=BETWEEN_1970_AND_2100)
def test_utc_text_means_that_moment(moment_us: int) -> None:
    assert parse_time(utc_text(moment_us), NOW, BERLIN) == moment_us


@given(st.text())
def test_any_text_is_a_time_or_a_usage_error(text: str) -> None:
    with contextlib.suppress(UsageError):
        assert isinstance(parse_time(text, NOW, BERLIN), int)


@given(st.integers(0, 5000), st.sampled_from(["s", "m", "h", "d", "w"]))
def test_ago(count: int, unit: str) -> None:
    length = timedelta(
        **{{"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}[unit]: count}
    )
    assert NOW - parse_time(f"{count}{unit} ago", NOW, BERLIN) == length / timedelta(microseconds=1)


@pytest.mark.parametrize(
    ("text", "selector"),
    [
        ("latest", Selector("", "latest", "")),
        ("3f9a", Selector("", "3f9a", "")),
        ("nb@2h ago", Selector("nb", "", "2h ago")),
        ("@yesterday 14:00", Selector("", "", "yesterday 14:00")),
        ("my.nb-2@2026-11-20T12:00:00+01:00", Selector("my.nb-2", "", "2026-11-20T12:00:00+01:00")),
    ],
)
def test_names_of_snapshots(text: str, selector: Selector) -> None:
    assert parse_selector(text) == selector


@pytest.mark.parametrize("text", ["nb@", "@", "nb@ "])
def test_an_at_without_a_time(text: str) -> None:
    with pytest.raises(UsageError, match="no time behind"):
        parse_selector(text)
