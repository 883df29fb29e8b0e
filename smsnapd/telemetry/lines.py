"""Progress as JSON lines, for programs."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import TextIO

from smsnapd.telemetry.secrets import redacted

JSON_INTERVAL_S = 0.2
"""Seconds between two lines of one phase."""


class JsonProgress:
    """One JSON object a line: at most five a second, and one with the full counts at each phase's end.

    `{"event": "progress", "phase", "files", "files_total", "bytes", "bytes_total", "stored_bytes",
    "elapsed_s", "done"}` and `{"event": "note", "text"}`. Totals are null where they are not known.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._lock = threading.Lock()
        self._phase = ""
        self._totals: tuple[int | None, int | None] = (None, None)
        self._counts = (0, 0, 0)
        self._began = self._told = 0.0

    def __enter__(self) -> JsonProgress:
        return self

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._end()

    def phase(self, name: str, files: int | None = None, bytes: int | None = None) -> None:
        """Tell the end of the phase before, and begin one."""
        with self._lock:
            self._end()
            self._phase, self._totals, self._counts = name, (files, bytes), (0, 0, 0)
            self._began = self._clock()
            self._tell(done=False)

    def advance(self, files: int = 0, bytes: int = 0, stored_bytes: int = 0) -> None:
        """Count, and tell if the last line is long enough ago."""
        with self._lock:
            before = self._counts
            self._counts = (before[0] + files, before[1] + bytes, before[2] + stored_bytes)
            if self._phase and self._clock() - self._told >= JSON_INTERVAL_S:
                self._tell(done=False)

    def note(self, text: str) -> None:
        """Tell at once."""
        with self._lock:
            self._write({"event": "note", "text": redacted(text)})

    def _end(self) -> None:
        if self._phase:
            self._tell(done=True)
            self._phase = ""

    def _tell(self, *, done: bool) -> None:
        self._told = self._clock()
        self._write(
            {
                "event": "progress",
                "phase": self._phase,
                "files": self._counts[0],
                "files_total": self._totals[0],
                "bytes": self._counts[1],
                "bytes_total": self._totals[1],
                "stored_bytes": self._counts[2],
                "elapsed_s": round(self._told - self._began, 3),
                "done": done,
            }
        )

    def _write(self, line: dict[str, object]) -> None:
        self._stream.write(json.dumps(line) + "\n")
        self._stream.flush()
