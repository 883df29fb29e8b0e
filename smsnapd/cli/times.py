"""Times and snapshot names as people type them, and times as they are shown.

>>> parse_time("2h ago", now_us=7_200_000_000, zone=UTC)
0
>>> parse_time("1970-01-02 00:00+01:00", now_us=0, zone=UTC)
82800000000
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import NamedTuple

from smsnapd.errors import UsageError

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_EXAMPLES = 'write "2026-11-20 14:00", "2026-11-20T14:00:00Z", "2h ago", "yesterday 14:00" or "now"'
_UNITS = {
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), 60),
    **dict.fromkeys(("h", "hour", "hours"), 3600),
    **dict.fromkeys(("d", "day", "days"), 86400),
    **dict.fromkeys(("w", "week", "weeks"), 604800),
}
_PIECE = re.compile(r"([0-9]{1,9})\s*([a-z]+)\s*")
_CLOCK = re.compile(r"([0-9]{1,2}):([0-9]{2})(?::([0-9]{2}))?")


class Selector(NamedTuple):
    """Which snapshot is meant: in `volume` ("" where it is not said) by `name` or by `time`, the other ""."""

    volume: str
    name: str
    time: str


def parse_selector(text: str) -> Selector:
    """Take apart an id, a prefix of one, `latest`, `VOLUME@TIME` or `@TIME`."""
    volume, at, time = text.partition("@")
    if not at:
        return Selector("", text, "")
    if not time.strip():
        raise UsageError(f"find the snapshot {text!r}", "there is no time behind the @", _EXAMPLES)
    return Selector(volume, "", time)


def parse_time(text: str, now_us: int, zone: tzinfo | None = None) -> int:
    """The moment that `text` means, in microseconds since the epoch.

    ISO 8601 with or without a zone; "now"; "2h ago", "1 day 3 hours ago", where a day is 24 hours;
    "today 14:00", "yesterday 14:00". A date alone is its first moment. Without a zone it is wall time
    in `zone`, None being that of the process; a wall time that the clocks skipped, or showed twice, is
    refused. Raises `UsageError`.
    """
    words = text.strip()
    lower = words.lower()
    try:
        if lower == "now":
            return now_us
        if lower.endswith("ago"):
            return _since_epoch(
                EPOCH + (now_us - _ago_s(lower.removesuffix("ago"), text) * 1_000_000) * _MICROSECOND
            )
        first, _, rest = lower.partition(" ")
        if first in ("today", "yesterday"):
            day = (EPOCH + now_us * _MICROSECOND).astimezone(zone).date() - timedelta(
                days=first == "yesterday"
            )
            return _from_wall(_at_clock(day, rest.strip(), text), zone, text)
        moment = datetime.fromisoformat(words)
        return _from_wall(moment, zone, text) if moment.tzinfo is None else _since_epoch(moment)
    except (ValueError, OverflowError, OSError) as error:
        raise UsageError(
            f"understand the time {text!r}", "it is none that is known here", _EXAMPLES
        ) from error


def utc_text(time_us: int) -> str:
    """A moment for programs: UTC, ISO 8601 with microseconds."""
    return f"{EPOCH + time_us * _MICROSECOND:%Y-%m-%dT%H:%M:%S.%fZ}"


def local_text(time_us: int, zone: tzinfo | None = None) -> str:
    """A moment for people, in local wall time; all its digits, so that it can be given back as a time."""
    return f"{(EPOCH + time_us * _MICROSECOND).astimezone(zone):%Y-%m-%d %H:%M:%S.%f}"


def _ago_s(pieces: str, text: str) -> int:
    total = position = 0
    for match in _PIECE.finditer(pieces.lstrip()):
        if match.start() != position or match[2] not in _UNITS:
            raise ValueError(text)
        total += int(match[1]) * _UNITS[match[2]]
        position = match.end()
    if not position or position != len(pieces.lstrip()):
        raise ValueError(text)
    return total


def _at_clock(day: date, clock: str, text: str) -> datetime:
    if not clock:
        return datetime(day.year, day.month, day.day)
    match = _CLOCK.fullmatch(clock)
    if match is None:
        raise ValueError(text)
    return datetime(day.year, day.month, day.day, int(match[1]), int(match[2]), int(match[3] or 0))


def _from_wall(wall: datetime, zone: tzinfo | None, text: str) -> int:
    """The one moment when clocks showed `wall`."""
    moments = []
    for fold in (0, 1):
        folded = wall.replace(fold=fold)
        moment = (folded if zone is None else folded.replace(tzinfo=zone)).astimezone(UTC)
        shown = moment.astimezone(zone)
        if shown.replace(tzinfo=None, fold=0) == wall and moment not in moments:
            moments.append(moment)
    if len(moments) == 1:
        return _since_epoch(moments[0])
    what = f"understand the time {text!r}"
    if not moments:
        raise UsageError(what, "the clocks were put forward over it", "name a time before or after that hour")
    zones = " or ".join(f"{moment.astimezone(zone).isoformat()[-6:]}" for moment in moments)
    raise UsageError(
        what, "the clocks were put back, and showed it twice", f"put the zone behind it: {zones}"
    )


def _since_epoch(moment: datetime) -> int:
    return (moment.astimezone(UTC) - EPOCH) // _MICROSECOND  # refuses what is no year in UTC
