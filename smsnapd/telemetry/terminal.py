"""Progress as a bar on a terminal, for people."""

from __future__ import annotations

import threading
from typing import Any, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from smsnapd.telemetry.secrets import redacted
from smsnapd.telemetry.sizes import size_text


class TerminalProgress:
    """A bar a phase: files, bytes, rate, stored bytes and time left. Gone when the work is done."""

    def __init__(self, stream: TextIO) -> None:
        self._lock = threading.Lock()
        self._console = Console(file=stream)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            _Counts(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._bars = Progress(*columns, console=self._console, transient=True)
        self._task: Task | None = None

    def __enter__(self) -> TerminalProgress:
        self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()

    def phase(self, name: str, files: int | None = None, bytes: int | None = None) -> None:
        """Replace the bar by that of the new phase, which runs by bytes if their total is known."""
        counts: dict[str, Any] = {
            "files": 0,
            "files_total": files,
            "bytes": 0,
            "bytes_total": bytes,
            "stored_bytes": 0,
        }
        with self._lock:
            if self._task is not None:
                self._bars.remove_task(self._task.id)
            number = self._bars.add_task(name, total=files if bytes is None else bytes, **counts)
            self._task = next(task for task in self._bars.tasks if task.id == number)

    def advance(self, files: int = 0, bytes: int = 0, stored_bytes: int = 0) -> None:
        """Count; the bar is drawn by a thread of its own, ten times a second."""
        with self._lock:
            if self._task is None:
                return
            counts = self._task.fields
            counts["files"] += files
            counts["bytes"] += bytes
            counts["stored_bytes"] += stored_bytes
            by_files = counts["bytes_total"] is None
            self._bars.advance(self._task.id, files if by_files else bytes)

    def note(self, text: str) -> None:
        """Print above the bar."""
        self._console.print(redacted(text), markup=False, highlight=False)


class _Counts(ProgressColumn):
    """Files, bytes, rate and stored bytes."""

    def render(self, task: Task) -> Text:
        return Text(counts_text(task.fields, task.elapsed or 0.0))


def counts_text(counts: dict[str, Any], elapsed_s: float) -> str:
    """The counts of a phase in one line; what is zero or not known is left out."""
    files = f"{counts['files']:,}"
    if counts["files_total"] is not None:
        files += f" of {counts['files_total']:,}"
    pieces = [f"{files} files", size_text(counts["bytes"])]
    if elapsed_s > 0:
        pieces.append(size_text(int(counts["bytes"] / elapsed_s)) + "/s")
    if counts["stored_bytes"]:
        pieces.append(size_text(counts["stored_bytes"]) + " stored")
    return ", ".join(pieces)
