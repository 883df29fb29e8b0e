"""What the emitters have in common: what they say, how they stop, how they fail."""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Iterable
from typing import Final, NamedTuple

from watchdog.events import FileSystemEvent
from watchdog.observers.api import EventEmitter, EventQueue, ObservedWatch

from smsnapd.volume.scan import Excludes
from smsnapd.volume.watch.hints import EVERYTHING, Hints, make_hints

ROOT_CHECK_S: Final = 60.0
"""Seconds between looks whether the root is still the directory that is watched."""


class Settings(NamedTuple):
    """What every emitter is given. `limit` bounds the paths that it holds before the watcher takes them."""

    excluded: Excludes
    limit: int
    poll_interval_s: float
    unlimited_queue: bool
    raise_limits: bool


class WatchEvent(FileSystemEvent):
    """What an emitter says, in order: hints; or that something was lost, and why; or how it stands.

    `gap` is a reason why events were or may have been lost, "" if none; the hints that mend it are in this
    event or a later one. `failed`: the emitter is at its end, for the reason in `gap`. `unwatched` is how
    many directories get no events, None if that is as before. `ticket` (not 0): whatever the kernel had told
    when this ticket was asked for has been said before this event.
    """

    def __init__(
        self,
        root: bytes,
        hints: Hints | None = None,
        *,
        gap: str = "",
        failed: bool = False,
        unwatched: int | None = None,
        ticket: int = 0,
    ) -> None:
        super().__init__(root)
        self.hints: Final = hints
        self.gap: Final = gap
        self.failed: Final = failed
        self.unwatched: Final = unwatched
        self.ticket: Final = ticket

    # watchdog's queue drops an event that equals the one before it: no two of these are equal.
    __eq__ = object.__eq__
    __hash__ = object.__hash__


class RootLostError(Exception):
    """The root is no longer the directory that is being watched."""


class RootIdentity:
    """Which directory the root was when watching began."""

    def __init__(self, root: bytes) -> None:
        """Raises `OSError` if there is no such directory."""
        self._root = root
        self._identity = self._look()
        self._next_look_s = time.monotonic() + ROOT_CHECK_S

    def check(self) -> None:
        """Look again, if it is time; raises `RootLostError` if another directory, or none, is there."""
        now = time.monotonic()
        if now < self._next_look_s:
            return
        self._next_look_s = now + ROOT_CHECK_S
        self.check_now()

    def check_now(self) -> None:
        """Look again; raises `RootLostError` if another directory, or none, is there."""
        try:
            same = self._look() == self._identity
        except OSError as error:
            raise RootLostError(f"the watched directory is gone: {error.strerror}") from error
        if not same:
            raise RootLostError("another directory or file system has taken the place of the watched one")

    def _look(self) -> tuple[int, int]:
        status = os.stat(self._root)
        if not stat.S_ISDIR(status.st_mode):
            raise NotADirectoryError(20, "Not a directory", self._root)
        return status.st_dev, status.st_ino


class HintEmitter(EventEmitter):
    """An emitter of `WatchEvent`s, whose `run` ends in one that says so if it ends by an error.

    Subclasses do what they do in `queue_events`, which may block until `on_thread_stop`, and answer tickets.
    """

    def __init__(
        self,
        event_queue: EventQueue,
        watch: ObservedWatch,
        *,
        timeout: float,
        settings: Settings,
        **_: object,
    ) -> None:
        super().__init__(event_queue, watch, timeout=timeout)
        self.name = f"watch-{type(self).__name__}"
        self.root: Final = os.fsencode(watch.path)
        self.settings: Final = settings
        self._tickets: list[int] = []
        self._tickets_lock: Final = threading.Lock()

    def ask(self, ticket: int) -> None:
        """Have this ticket come back once everything that the kernel has told by now has been said."""
        raise NotImplementedError

    def run(self) -> None:
        """What the thread does."""
        try:
            super().run()
        except Exception as error:  # whatever it is, the watcher must know that nobody listens any more
            self.fail(str(error) or repr(error))

    def fail(self, reason: str) -> None:
        """Say that this is the end, and have everything scanned."""
        self.say(WatchEvent(self.root, make_hints((), (EVERYTHING,), 0), gap=reason, failed=True))

    def say(self, event: WatchEvent) -> None:
        """Hand this to the observer."""
        self.queue_event(event)

    def _take_tickets(self) -> list[int]:
        with self._tickets_lock:
            tickets, self._tickets = self._tickets, []
        return tickets

    def _answer(self, tickets: Iterable[int]) -> None:
        """Send these tickets back."""
        for ticket in tickets:
            self.say(WatchEvent(self.root, ticket=ticket))
