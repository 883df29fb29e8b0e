"""What goes with a full: its environment report, made beside it; whatever becomes of that, it goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from smsnapd.engine.backup.looks import Hints
from smsnapd.engine.backup.request import EnvironmentRequest
from smsnapd.engine.environment.copies import with_copies
from smsnapd.engine.environment.judging import Judged
from smsnapd.engine.environment.leaving import Leaving, restored
from smsnapd.engine.environment.report import LeftOut, decode_report, encode_report
from smsnapd.engine.environment.surveyor import Answer, SurveyError, Surveyor, SurveyTask
from smsnapd.engine.progress import Progress
from smsnapd.errors import DamageError
from smsnapd.model import path_text

JUDGING_S = 900.0
"""Seconds for which it is judged at most what can be left out, before a full begins."""


class Companion:
    """One run's report, and what the run leaves out for it. `notes` are for people, and told as they come."""

    def __init__(self, root: bytes, request: EnvironmentRequest | None, progress: Progress) -> None:
        """Without a request nothing is ever done."""
        self._root = root
        self._request = request
        self._progress = progress
        self._surveyor: Surveyor | None = None
        self._answer: Answer | None = None
        self.leaving = Leaving(root)
        self.notes: list[str] = []

    def begin(self, left_out: Iterable[tuple[int, int]], *, judging: bool = True) -> None:
        """Begin to look, for a full; `left_out` are (device, inode) of what is nobody's business.

        Without `judging` nothing will be left out, as nothing can be of an image.
        """
        if self._request is None:
            return
        judging_s = JUDGING_S if judging and self._request.leave_out else 0.0
        try:
            self._surveyor = Surveyor(
                SurveyTask(self._root, self._request.seconds, tuple(left_out), judging_s)
            )
        except SurveyError as error:
            self._note(f"there is no environment report: {error}")

    def candidates(self, saved: bytes | None, renew: Callable[[], None]) -> list[Judged]:
        """What may be left out: of a full what is judged now, of an incremental what was `saved`."""
        if self._request is None or not self._request.leave_out:
            return []
        if self._surveyor is None:
            return restored(saved)
        self._progress.phase("judge environments")
        self._wait(renew)
        judged = self._answer.judged if self._answer else ()
        for environment in judged:
            if environment.why:
                self._note(f"{path_text(environment.path)} is not left out: {environment.why}")
        return [environment for environment in judged if not environment.why]

    def leave(self, candidates: Iterable[Judged], hints: Hints | None) -> None:
        """Leave out what is as it was judged; after everything that was written has its time."""
        self.leaving.hold(candidates, hints)
        for path in self.leaving.back:
            self._note(f"{path_text(path)} has changed: it is backed up, at least until the next full")

    def report(self, renew: Callable[[], None]) -> bytes:
        """The report as JSON, when it is there; b"" if there is none. `renew` keeps the lease meanwhile."""
        self._wait(renew)
        if self._answer is None:
            return b""
        report = decode_report(self._answer.report, "use the environment report")
        if report.is_empty:
            return b""
        if self._request and self._request.data_places:
            report = with_copies(report, self._root, self._request.data_places, self._beat(renew))
        left = [LeftOut(path_text(e.path), e.files, e.size_bytes) for e in self.leaving.held]
        if told := self.leaving.told():
            self._note(told)
        return encode_report(msgspec.structs.replace(report, left_out=tuple(left)))

    def _wait(self, renew: Callable[[], None]) -> None:
        if self._surveyor is None:
            return
        try:
            answer = self._surveyor.collect(self._beat(renew))
            decode_report(answer.report, "use the environment report")
            self._answer = answer
        except (SurveyError, DamageError) as error:
            self._note(f"there is no environment report: {error}")
        finally:
            self.close()

    def _beat(self, renew: Callable[[], None]) -> Callable[[], None]:
        """What is called while something is waited for: it keeps the lease, and tells that we are alive."""

        def beat() -> None:
            renew()
            self._progress.advance()

        return beat

    def close(self) -> None:
        """End what is under way. May be called more than once."""
        surveyor, self._surveyor = self._surveyor, None
        if surveyor is not None:
            surveyor.close()

    def _note(self, text: str) -> None:
        self.notes.append(text)
        self._progress.note(text)
