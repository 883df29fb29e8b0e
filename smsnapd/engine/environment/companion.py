"""What goes with a full: its environment report, made beside it; whatever becomes of that, it goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from smsnapd.engine.environment.report import decode_report
from smsnapd.engine.environment.surveyor import SurveyError, Surveyor, SurveyTask
from smsnapd.engine.progress import Progress
from smsnapd.errors import DamageError

SURVEY_S = 120.0
"""Seconds that a survey takes at most: a full that is done sooner waits for so long."""


@dataclass(frozen=True)
class EnvironmentRequest:
    """That a report is wanted, and how long may be looked for it, in seconds."""

    seconds: float = SURVEY_S


class Companion:
    """One run's report. `notes` are for people, and told to the progress as they come."""

    def __init__(self, root: bytes, request: EnvironmentRequest | None, progress: Progress) -> None:
        """Without a request nothing is ever done."""
        self._root = root
        self._request = request
        self._progress = progress
        self._surveyor: Surveyor | None = None
        self.notes: list[str] = []

    def begin(self, left_out: Iterable[tuple[int, int]]) -> None:
        """Begin to look; `left_out` are the (device, inode) of directories that are nobody's business."""
        if self._request is None:
            return
        try:
            self._surveyor = Surveyor(SurveyTask(self._root, self._request.seconds, tuple(left_out)))
        except SurveyError as error:
            self._note(f"there is no environment report: {error}")

    def report(self, renew: Callable[[], None]) -> bytes:
        """The report as JSON, when it is there; b"" if there is none. `renew` keeps the lease meanwhile."""
        if self._surveyor is None:
            return b""

        def beat() -> None:
            renew()
            self._progress.advance()

        try:
            data = self._surveyor.collect(beat).report
            report = decode_report(data, "use the environment report")
        except (SurveyError, DamageError) as error:
            self._note(f"there is no environment report: {error}")
            return b""
        finally:
            self.close()
        return b"" if report.is_empty else data

    def close(self) -> None:
        """End what is under way. May be called more than once."""
        surveyor, self._surveyor = self._surveyor, None
        if surveyor is not None:
            surveyor.close()

    def _note(self, text: str) -> None:
        self.notes.append(text)
        self._progress.note(text)
