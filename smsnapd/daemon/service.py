"""The daemon as a process: starts everything, minds the signals, and ends it in the right order."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import select
import signal
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from smsnapd.daemon.agenda import Agenda, Demand
from smsnapd.daemon.board import Board
from smsnapd.daemon.control import ControlServer
from smsnapd.daemon.exposing import Exposure
from smsnapd.daemon.measuring import Measuring
from smsnapd.daemon.notify import Notifier
from smsnapd.daemon.plan import Plan, load_plan
from smsnapd.daemon.runs import Runs
from smsnapd.daemon.status import Status
from smsnapd.daemon.telling import Tellers, Telling
from smsnapd.daemon.thread import WorkThread
from smsnapd.daemon.worker import Worker
from smsnapd.errors import SmsnapError, UsageError

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
_ENDINGS: Final = (signal.SIGTERM, signal.SIGINT)
_LOCK: Final = "lock"
_LAST_NOTICES_S: Final = 5.0
"""How long the last notices may take, if the stop has so much time left."""
_log = logging.getLogger(__name__)


class Service:
    """One life of the daemon. The main thread waits for signals; one other works."""

    def __init__(
        self,
        config_file: str | None,
        plan: Plan,
        directory: Path,
        notifier: Notifier,
        environment: Mapping[str, str],
    ) -> None:
        """`directory` is for the socket and the status; it must be locked for this process."""
        self._config_file = config_file
        self._plan = plan
        self._directory = directory
        self._notifier = notifier
        self._agenda = Agenda()
        self._board = Board(directory, plan, notifier)
        runs = Runs(plan, environment)
        measuring = Measuring()
        self._exposure = Exposure(self._board, measuring)
        self._telling = Telling(environment, self._board.trouble)
        self._tellers = Tellers(measuring, self._exposure, self._telling)
        self._worker = Worker(plan, self._agenda, self._board, notifier, runs, self._tellers)
        self._waking, self._woken = socket.socketpair()
        self._waking.setblocking(False)
        self._thread = WorkThread(self._worker, self._worker_ended)

    def run(self) -> int:
        """Live until a signal ends it; the exit status, 1 if the worker ended by itself."""
        with _signals_to(self._waking.fileno()):
            control = ControlServer(self._directory, self, lambda: owner_of(self._plan))
            self._board.show_to(self._exposure.saw)
            self._tellers.use(self._plan)
            self._thread.start()
            self._notifier.ready()
            request = self._plan.request
            _log.info(
                "protecting %s as %s in %s",
                os.fsdecode(request.root), request.volume, self._plan.settings.url,
            )  # fmt: skip
            self._mind()
            status = self._end()
            control.close()
        self._waking.close()
        self._woken.close()
        return status

    # --- asked over the socket

    def status(self) -> Status:
        """How it stands."""
        return self._board.status

    def serves(self, volume: str, path: str, url: str) -> bool:
        """Whether this is the daemon of that volume and repository."""
        plan = self._plan
        root = os.path.realpath(os.fsdecode(plan.request.root))
        return (volume, os.path.realpath(path), url) == (plan.request.volume, root, plan.settings.url)

    def demand(self, demand: Demand) -> bool:
        """Ask for a backup."""
        return self._agenda.demand(demand)

    # --- signals

    def _mind(self) -> None:
        """Until the end is asked for or the worker is gone."""
        while self._thread.is_alive():
            for number in self._signals(None):
                if number in _ENDINGS:
                    return
                if number == signal.SIGHUP:
                    self._reload()
                elif number == signal.SIGUSR1:
                    self._agenda.demand(Demand())

    def _signals(self, timeout_s: float | None) -> list[int]:
        """Signals that came; empty if only the worker called, or after the time."""
        ready, _, _ = select.select([self._woken], [], [], timeout_s)
        return [number for number in self._woken.recv(4096) if number] if ready else []

    def _reload(self) -> None:
        """Take in the configuration anew, or keep the old one and say why."""
        self._notifier.reloading()
        try:
            plan = load_plan(self._config_file)
        except SmsnapError as error:
            _log.error("%s; the configuration from before stays in use", error)
            self._board.change(configuration_error=str(error))
        else:
            self._plan = plan
            self._agenda.replace(plan)
        self._notifier.ready()

    def _worker_ended(self) -> None:
        with contextlib.suppress(OSError):
            self._waking.send(b"\0")

    def _end(self) -> int:
        """Let the worker commit what is pending, for as long as there is time."""
        within_s = self._plan.stop_s
        self._notifier.stopping(within_s)
        self._agenda.stop(within_s)
        self._thread.join(max(0.0, self._agenda.time_left_s))
        in_time = not self._thread.is_alive()
        if not in_time:
            left = self._worker.abandoned() or "a run is cut short"
            _log.warning("stopping before all is committed: %s", left)
        self._telling.close(min(_LAST_NOTICES_S, max(0.0, self._agenda.time_left_s)))
        self._board.change("stopped", run=None)
        self._exposure.close()
        if in_time:
            _log.info("stopped")
            return 1 if self._thread.failure is not None else 0
        # A run cannot be made to end, and need not be: without its manifest it is as if it had never begun.
        # Its worker processes end by themselves when this one does.
        logging.shutdown()
        os._exit(0)


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Make the runtime directory and hold it; SmsnapError if another daemon does, or it cannot be made."""
    what = f"run in {directory}"
    try:
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        descriptor = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        hint = "run as root, or set RUNTIME_DIRECTORY to a directory that you may write to"
        raise UsageError(what, error.strerror or str(error), hint) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise SmsnapError(what, "another daemon is running", "see it: smsnap status") from error
    finally:
        os.close(descriptor)


def owner_of(plan: Plan) -> int | None:
    """The user id of the volume root's owner; None if it is not there."""
    try:
        return os.stat(plan.request.root).st_uid
    except OSError:
        return None


@contextlib.contextmanager
def _signals_to(descriptor: int) -> Iterator[None]:
    """Signals as bytes on `descriptor`: what a handler could do is done where it can do no harm."""
    before = {number: signal.signal(number, lambda *_: None) for number in _SIGNALS}
    woken_before = signal.set_wakeup_fd(descriptor, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(woken_before)
        for number, handler in before.items():
            signal.signal(number, handler)
