"""The progress of a run: it feeds the watchdog, fills the status, and goes on to whoever asked."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple

from smsnapd.engine.progress import Progress
from smsnapd.telemetry import LoggedNotes


class Counted(NamedTuple):
    """How far a run is."""

    phase: str
    files: int = 0
    files_total: int | None = None
    bytes: int = 0
    bytes_total: int | None = None
    stored_bytes: int = 0


class RunProgress:
    """One run's progress; told by the engine from any thread."""

    def __init__(self, onward: Progress, beat: Callable[[], None], show: Callable[[Counted], None]) -> None:
        """`beat` says that the work goes on, `show` is given the counts; both must be quick."""
        self._onward = onward
        self._beat = beat
        self._show = show
        self._log = LoggedNotes()
        self._lock = threading.Lock()
        self._counted = Counted("")

    def phase(self, name: str, files: int | None = None, bytes: int | None = None) -> None:
        """Begin a phase."""
        with self._lock:
            self._counted = Counted(name, files_total=files, bytes_total=bytes)
        self._tell()
        self._onward.phase(name, files, bytes)

    def advance(self, files: int = 0, bytes: int = 0, stored_bytes: int = 0) -> None:
        """Count."""
        with self._lock:
            was = self._counted
            self._counted = was._replace(
                files=was.files + files,
                bytes=was.bytes + bytes,
                stored_bytes=was.stored_bytes + stored_bytes,
            )
        self._tell()
        self._onward.advance(files, bytes, stored_bytes)

    def note(self, text: str) -> None:
        """Log it, and tell whoever asked."""
        self._log.note(text)
        self._onward.note(text)

    def _tell(self) -> None:
        self._beat()
        self._show(self._counted)
