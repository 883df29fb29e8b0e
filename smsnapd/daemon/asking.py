"""The control socket, the other end: asking a running daemon."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

import msgspec

from smsnapd import errors
from smsnapd.daemon.control import Request
from smsnapd.daemon.runtime import SOCKET
from smsnapd.daemon.status import Status
from smsnapd.engine.backup.run import BackupOutcome
from smsnapd.engine.progress import Progress
from smsnapd.errors import SmsnapError

_CONNECT_S: Final = 5.0


class NotAllowedError(SmsnapError):
    """There is a daemon, and this user may not ask it."""


def ask_status(directory: Path) -> Status | None:
    """How the daemon of this runtime directory stands; None if none is running.

    NotAllowedError if it may not be asked by this user, SmsnapError if it does not answer as it should.
    """
    with _asked(directory, Request("status")) as answers:
        if answers is None:
            return None
        line = _line(answers)
        if b'"event"' in line[:10]:
            raise _error(json.loads(line))
        try:
            return Status.decode(line)
        except ValueError as error:
            raise SmsnapError("ask the daemon", str(error), "is it of another version?") from error


def ask_backup(directory: Path, request: Request, progress: Progress) -> BackupOutcome | None:
    """Have the daemon back up now, with its progress; None if there is no daemon, or for something else.

    Raises what the run raised. Whoever is interrupted here does not interrupt the daemon.
    """
    with _asked(directory, request) as answers:
        if answers is None:
            return None
        shown = _Shown(progress)
        while True:
            line = _line(answers)
            answer = json.loads(line)
            if answer["event"] == "done":
                return msgspec.json.decode(line, type=_Done).outcome
            if answer["event"] == "elsewhere":
                return None
            if answer["event"] == "failed":
                raise _error(answer)
            shown.tell(answer)


class _Done(msgspec.Struct):
    """The last line of a run that went well."""

    outcome: BackupOutcome


class _Shown:
    """Lines of progress, shown as the engine would have told them."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._phase = ""
        self._counts = (0, 0, 0)

    def tell(self, answer: dict[str, Any]) -> None:
        """Show a line."""
        if answer["event"] == "note":
            self._progress.note(answer["text"])
            return
        counts = (answer["files"], answer["bytes"], answer["stored_bytes"])
        if answer["phase"] != self._phase:
            self._phase, self._counts = answer["phase"], (0, 0, 0)
            self._progress.phase(self._phase, answer["files_total"], answer["bytes_total"])
        before, self._counts = self._counts, counts
        if counts != before:
            files, size, stored = (now - then for now, then in zip(counts, before, strict=True))
            self._progress.advance(files, size, stored)


@contextmanager
def _asked(directory: Path, request: Request) -> Iterator[IO[bytes] | None]:
    """The answers to a request; None if no daemon listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
        connection.settimeout(_CONNECT_S)
        try:
            connection.connect(os.fspath(directory / SOCKET))
        except PermissionError as error:
            hint = "ask as root, or as the owner of the volume"
            raise NotAllowedError("ask the daemon", "this user may not", hint) from error
        except OSError:
            yield None
            return
        try:
            connection.sendall(msgspec.json.encode(request) + b"\n")
        except OSError as error:
            raise _lost(error.strerror or str(error)) from error
        # A run that waits for another one is silent for as long as that takes.
        connection.settimeout(None)
        with connection.makefile("rb") as answers:
            yield answers


def _line(answers: IO[bytes]) -> bytes:
    try:
        line = answers.readline()
    except OSError as error:
        raise _lost(error.strerror or str(error)) from error
    if not line.endswith(b"\n"):
        raise _lost("it closed the connection")
    return line


def _lost(why: str) -> SmsnapError:
    return SmsnapError("hear from the daemon", why, "see how it is: smsnap status")


def _error(answer: dict[str, Any]) -> SmsnapError:
    """The error that the daemon told, of the class that it was, so that the exit status is the same."""
    kind = getattr(errors, answer["error"], SmsnapError)
    if not (isinstance(kind, type) and issubclass(kind, SmsnapError)):
        kind = SmsnapError
    return kind(answer["what"], answer["why"], answer["hint"])
