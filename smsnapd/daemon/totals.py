"""What the daemon has asked of S3 in each month, kept from one life to the next: the bill is by the month.

>>> import tempfile
>>> totals = RequestTotals(Path(tempfile.mkdtemp()) / "nb.requests.json", "s3://bucket/prefix")
>>> totals.take_in(Requests(put=2)).requests.put
2
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from smsnapd.store.counting import Requests

_WRITE_EVERY_S: Final = 60.0
_MONTHS_KEPT: Final = 13
_log = logging.getLogger(__name__)


class Month(msgspec.Struct, frozen=True):
    """A month of UTC ("2026-11"), what was counted in it, and from when to when: seconds since the epoch."""

    month: str
    since_s: float
    until_s: float
    requests: Requests = Requests()


class _Kept(msgspec.Struct):
    """The file: months in order, all of one repository."""

    url: str
    months: list[Month] = []


class RequestTotals:
    """The totals of one volume in `file`, written at most once a minute. For one thread.

    They are for looking at: a file that cannot be read or written is told in the log, and nothing fails.
    """

    def __init__(
        self,
        file: Path,
        url: str,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` gives seconds since the epoch. What was counted for another `url` is forgotten."""
        self._file = file
        self._clock = clock
        self._monotonic = monotonic
        self._kept = _Kept(url, list(_read(file, url)))
        self._written_s = -float("inf")
        self._is_news = False
        self._has_complained = False

    def take_in(self, requests: Requests) -> Month:
        """Add what was asked since the last time; the month that it is now."""
        now_s = self._clock()
        months = self._kept.months
        name = f"{datetime.fromtimestamp(now_s, UTC):%Y-%m}"
        if not months or months[-1].month != name:
            months.append(Month(name, now_s, now_s))
            del months[:-_MONTHS_KEPT]
        if requests != Requests():
            last = months[-1]
            months[-1] = Month(name, last.since_s, now_s, last.requests + requests)
            self._is_news = True
        if self._is_news and self._monotonic() - self._written_s >= _WRITE_EVERY_S:
            self._write()
        return months[-1]

    def close(self) -> None:
        """Write what is not yet written."""
        if self._is_news:
            self._write()

    def _write(self) -> None:
        """Replace the file, readable to its owner alone."""
        self._written_s = self._monotonic()
        self._is_news = False
        new = self._file.with_suffix(".new")
        try:
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            new.unlink(missing_ok=True)
            descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(msgspec.json.encode(self._kept) + b"\n")
            os.replace(new, self._file)
            self._has_complained = False
        except OSError as error:
            if not self._has_complained:
                _log.warning("the count of requests was not kept: %s", error)
            self._has_complained = True


def totals_file(state_dir: Path, volume: str) -> Path:
    """Where the totals of a volume are kept."""
    return state_dir / f"{volume}.requests.json"


def read_totals(file: Path, url: str) -> tuple[Month, ...]:
    """The months in `file`, oldest first; none if it is of another repository, or of nobody.

    Raises OSError if it is there and may not be read, ValueError if it is damaged.
    """
    try:
        kept = msgspec.json.decode(file.read_bytes(), type=_Kept)
    except FileNotFoundError:
        return ()
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from error
    return tuple(kept.months) if kept.url == url else ()


def _read(file: Path, url: str) -> tuple[Month, ...]:
    try:
        return read_totals(file, url)
    except (OSError, ValueError) as error:
        _log.warning("requests are counted anew, since %s cannot be used: %s", file, error)
        return ()
