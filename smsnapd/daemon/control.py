"""The control socket, the daemon's end: who may ask, what can be asked, and the answers as they come.

One JSON object a line, both ways; one request a connection.
`{"request": "status"}` is answered by the status. `{"request": "backup", "volume", "path", "url", "mode",
"full", "reread", "take_over"}` by lines of progress (`{"event": "progress"|"note", …}`, as `smsnap backup
--json` has them), and at last by `{"event": "done", "outcome"}` or `{"event": "failed", "error", "what",
"why", "hint"}`. A daemon that serves another volume or repository says `{"event": "elsewhere"}`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol, cast

import msgspec

from smsnapd.daemon.agenda import Demand
from smsnapd.daemon.runtime import SOCKET
from smsnapd.daemon.status import Status
from smsnapd.engine.backup.run import BackupOutcome
from smsnapd.engine.progress import Progress
from smsnapd.errors import SmsnapError
from smsnapd.telemetry.lines import JsonProgress

_PEER: Final = struct.Struct("3i")
"""struct ucred of unix(7): process, user, group."""
_LONGEST_REQUEST: Final = 65536
_REQUEST_S: Final = 10.0
_CONNECTIONS: Final = 8
_BACKLOG_LINES: Final = 1000
_log = logging.getLogger(__name__)


class Request(msgspec.Struct, frozen=True):
    """What a client asks."""

    request: str
    volume: str = ""
    path: str = ""
    url: str = ""
    mode: str = ""
    full: bool = False
    reread: bool = False
    take_over: bool = False


class Asked(Protocol):
    """Who answers: the service. Called from the connections' threads."""

    def status(self) -> Status:
        """How it stands."""

    def serves(self, volume: str, path: str, url: str) -> bool:
        """Whether this is the daemon of that volume and repository."""

    def demand(self, demand: Demand) -> bool:
        """Ask for a backup; False if the daemon takes no more."""


class Answers:
    """The lines that go to one client; what it is too slow for is dropped, but never its end.

    The worker must not wait for whoever looks on, so lines go through a queue.
    """

    def __init__(self) -> None:
        self._lines: queue.Queue[bytes | None] = queue.Queue(_BACKLOG_LINES)
        self._told = JsonProgress(cast(Any, self))
        self.progress: Progress = self._told

    def write(self, text: str) -> None:
        """A line of progress; dropped if the client is far behind."""
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait(text.encode())

    def flush(self) -> None:
        """Nothing is held back."""

    def done(self, outcome: BackupOutcome) -> None:
        """The run went well."""
        self._end({"event": "done", "outcome": outcome})

    def failed(self, error: SmsnapError) -> None:
        """It did not."""
        shape = {"error": type(error).__name__, "what": error.what, "why": error.why, "hint": error.hint}
        self._end({"event": "failed", **shape})

    def close(self) -> None:
        """No more lines come."""
        self._put_last(None)

    def next(self) -> bytes | None:
        """The next line, None after the last."""
        return self._lines.get()

    def _end(self, last: dict[str, Any]) -> None:
        self._told.__exit__()  # the last phase's counts
        self._put_last(msgspec.json.encode(last) + b"\n")
        self._put_last(None)

    def _put_last(self, line: bytes | None) -> None:
        while True:
            try:
                self._lines.put_nowait(line)
            except queue.Full:
                with contextlib.suppress(queue.Empty):
                    self._lines.get_nowait()
            else:
                return


class ControlServer:
    """Listens on the socket in `directory`, for root and the volume's owner."""

    def __init__(self, directory: Path, asked: Asked, owner: Callable[[], int | None]) -> None:
        """`owner` is the user id of the volume root's owner, None if it is not there. Raises OSError.

        A socket that an earlier daemon left is replaced: the caller made sure that none lives.
        """
        self._asked = asked
        self._owner = owner
        self._path = directory / SOCKET
        self._slots = threading.BoundedSemaphore(_CONNECTIONS)
        self._is_over = False
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        before = os.umask(0o177)
        try:
            self._listener.bind(str(self._path))
        finally:
            os.umask(before)
        self._give_to_owner()
        self._listener.listen(_CONNECTIONS)
        self._thread = threading.Thread(target=self._accept, name="control", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Listen no more, and take the socket away."""
        self._is_over = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()

    def _give_to_owner(self) -> None:
        owner = self._owner()
        if owner is not None and owner != os.geteuid():
            try:
                os.chown(self._path, owner, -1)
            except OSError as error:
                _log.info("the control socket is for root alone: %s", error.strerror)

    def _accept(self) -> None:
        while not self._is_over:
            try:
                connection, _ = self._listener.accept()
            except OSError as error:
                if not self._is_over:
                    _log.warning("the control socket is closed: %s", error)
                return
            if not self._slots.acquire(blocking=False):
                connection.close()
                continue
            threading.Thread(
                target=self._serve, args=(connection,), name="control-client", daemon=True
            ).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection:
                connection.settimeout(_REQUEST_S)
                self._answer(connection)
        except OSError as error:
            _log.debug("a control client went away: %s", error)
        finally:
            self._slots.release()

    def _answer(self, connection: socket.socket) -> None:
        # Read first, whoever asks: closing with bytes unread would reset the connection, answer and all.
        with connection.makefile("rb") as lines:
            line = lines.readline(_LONGEST_REQUEST)
        _, user, _ = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
        if user not in (0, self._owner()):
            _log.warning("user %d asked at the control socket and was refused", user)
            _refuse(connection, "this user may not", "ask as root, or as the owner of the volume")
            return
        try:
            request = msgspec.json.decode(line, type=Request)
        except msgspec.MsgspecError as error:
            _refuse(connection, f"the request is not understood: {error}")
            return
        if request.request == "status":
            connection.sendall(self._asked.status().encode() + b"\n")
        elif request.request == "backup":
            self._back_up(connection, request)
        else:
            _refuse(connection, f"no such request: {request.request}")

    def _back_up(self, connection: socket.socket, request: Request) -> None:
        if not self._asked.serves(request.volume, request.path, request.url):
            connection.sendall(b'{"event": "elsewhere"}\n')
            return
        answers = Answers()
        demand = Demand(request.full, request.reread, request.take_over, answers, request.mode)
        if not self._asked.demand(demand):
            _refuse(connection, "it is stopping, or too much is asked for already", "try again later")
            return
        while (line := answers.next()) is not None:
            connection.sendall(line)


def _refuse(connection: socket.socket, why: str, hint: str = "") -> None:
    line = {"event": "failed", "error": "SmsnapError", "what": "ask the daemon", "why": why, "hint": hint}
    connection.sendall(msgspec.json.encode(line) + b"\n")
