"""The watcher: picks an emitter, keeps one alive, and holds what it found until somebody takes it."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final, Literal, NamedTuple

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers.api import BaseObserver

from smsnapd.errors import VolumeError
from smsnapd.volume.scan import Excludes
from smsnapd.volume.watch.emitter import HintEmitter, Settings, WatchEvent
from smsnapd.volume.watch.fanotify_emitter import FanotifyEmitter
from smsnapd.volume.watch.hints import EVERYTHING, Counts, Hints, Pending, make_hints
from smsnapd.volume.watch.inotify import InotifyEmitter
from smsnapd.volume.watch.polling import PollingEmitter

Kind = Literal["fanotify", "inotify", "poll"]
"""What a watcher hears changes from."""

_EMITTERS: Final[dict[Kind, type[HintEmitter]]] = {
    "fanotify": FanotifyEmitter,
    "inotify": InotifyEmitter,
    "poll": PollingEmitter,
}
_ORDER: Final[tuple[Kind, ...]] = ("fanotify", "inotify", "poll")
_REASONS: Final[dict[Kind, str]] = {
    "fanotify": "one mark watches the whole file system",
    "inotify": "each directory is watched",
    "poll": "everything is scanned at intervals",
}
_Hear = Callable[[WatchEvent], None]
_KEPT_GAPS: Final = 100
_TRIES: Final = 3
_TRIES_WITHIN_S: Final = 600.0
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 60.0


class Gap(NamedTuple):
    """Events were lost, or are not to be had for a part of the volume.

    `time_ns` is in nanoseconds since the epoch. Whatever a gap may hide is covered by a subtree among the
    hints from that moment on.
    """

    time_ns: int
    reason: str


class Watcher:
    """Tells where a volume changes. For several threads.

    It watches from the moment `start` returns: what changed before is for a scan to find that begins after
    it. It writes nothing to the volume and keeps nothing of it open. Hints may name what did not change, or
    is no more; that they leave nothing out that the kernel told is what `gaps` and `is_healthy` are about.
    """

    def __init__(
        self,
        *,
        max_pending: int = 50_000,
        poll_interval_s: float = 300.0,
        unlimited_queue: bool = True,
        raise_limits: bool = True,
    ) -> None:
        """More than `max_pending` paths collapse into everything.

        What no event is to be had for is due for a look every `poll_interval_s`. fanotify's queue grows
        without end if `unlimited_queue`, else it overflows at `fs.fanotify.max_queued_events`. inotify's
        limit of watches is raised when it is reached, if `raise_limits` and the system allow it.
        """
        self._pending = Pending(max_pending)
        self._max_pending = max_pending
        self._poll_interval_s = poll_interval_s
        self._unlimited_queue = unlimited_queue
        self._raise_limits = raise_limits
        self._state = threading.Condition()
        self._gaps: deque[Gap] = deque(maxlen=_KEPT_GAPS)
        self._kind: Kind = "poll"
        self._reason = "not started"
        self._unwatched = 0
        self._observer: _Observer | None = None
        self._supervisor: threading.Thread | None = None
        self._has_failed = self._is_stopping = False
        self._failures: deque[float] = deque(maxlen=_TRIES)
        self._next_ticket = 1
        self._asked: set[int] = set()
        self._answered: set[int] = set()

    def start(
        self, root: bytes, kind: Literal["auto"] | Kind = "auto", excluded: Excludes | None = None
    ) -> None:
        """Watch the directory `root` and what lies below it on its file system. Once in a life.

        `auto` takes fanotify where kernel and privileges allow it, else inotify, else it polls. Raises
        `VolumeError` if there is no such directory, or the kind asked for is not to be had.
        """
        self._root = os.path.realpath(root)
        if not os.path.isdir(self._root):
            raise VolumeError(f"watch {os.fsdecode(root)}", "it is not a directory", "is it mounted?")
        self._settings = Settings(
            excluded or Excludes(),
            self._max_pending,
            self._poll_interval_s,
            self._unlimited_queue,
            self._raise_limits,
        )
        self._kinds: tuple[Kind, ...] = _ORDER if kind == "auto" else (kind,)
        self._begin()
        if kind != "auto" and kind != "poll":
            self._kinds = (kind, "poll")
        self._supervisor = threading.Thread(target=self._supervise, name="watch-supervisor", daemon=True)
        self._supervisor.start()

    def stop(self) -> None:
        """Watch no more; what is pending can still be taken. May be called more than once."""
        with self._state:
            self._is_stopping = True
            self._state.notify_all()
        if self._supervisor is not None:
            self._supervisor.join()
        self._end()

    def take(self) -> Hints:
        """All hints that are pending, which are pending no longer."""
        return self._pending.take()

    def give_back(self, hints: Hints) -> None:
        """Have hints pending again that were taken for nothing: the backup failed."""
        self._pending.merge(hints)

    def peek(self) -> Counts:
        """How much is pending."""
        return self._pending.counts()

    def wait(self, timeout_s: float | None) -> bool:
        """Wait until something is pending, at most this long (None: for ever); whether something is."""
        return self._pending.wait(timeout_s)

    def catch_up(self, timeout_s: float) -> bool:
        """Wait until every event from before this call is among the hints; whether that came true.

        It does not in `timeout_s` under a storm that never ends, not while the emitter is being replaced or
        inotify has no watch left, and never while polling.
        """
        with self._state:
            observer = self._observer
            if observer is None:
                return False
            ticket, self._next_ticket = self._next_ticket, self._next_ticket + 1
            self._asked.add(ticket)
        try:
            observer.emitter.ask(ticket)
            with self._state:
                self._state.wait_for(
                    lambda: ticket in self._answered or self._has_failed or self._observer is not observer,
                    timeout_s,
                )
                return ticket in self._answered
        finally:
            with self._state:
                self._asked.discard(ticket)
                self._answered.discard(ticket)

    @property
    def kind(self) -> Kind:
        """What changes are heard from now."""
        return self._kind

    @property
    def reason(self) -> str:
        """Why it is that, for people."""
        return self._reason

    @property
    def gaps(self) -> tuple[Gap, ...]:
        """The gaps since the start, at most the latest hundred, oldest first."""
        with self._state:
            return tuple(self._gaps)

    @property
    def unwatched(self) -> int:
        """Directories, or at least so many, from which no event comes now though there should."""
        return self._unwatched

    @property
    def is_healthy(self) -> bool:
        """Whether all threads run and no directory is without a watch. Polling is healthy, and slow."""
        with self._state:
            observer, troubled = self._observer, self._has_failed or self._unwatched > 0
        return observer is not None and not troubled and observer.is_alive() and observer.emitter.is_alive()

    def _begin(self) -> None:
        """Start the first of the kinds that can be had; raises `VolumeError` if there is none."""
        refusals: list[str] = []
        for kind in self._kinds:
            try:
                observer = _Observer(_EMITTERS[kind], self._settings, self._root, self._hear)
                observer.start()
            except OSError as error:
                refusals.append(f"{kind}: {error.strerror or error}")
                continue
            with self._state:
                self._observer, self._kind = observer, kind
                self._reason = "; ".join(refusals) or _REASONS[kind]
            return
        raise VolumeError(
            f"watch {os.fsdecode(self._root)}", "; ".join(refusals), "is it mounted? `auto` takes what works"
        )

    def _end(self) -> None:
        with self._state:
            observer, self._observer = self._observer, None
            self._state.notify_all()
        if observer is not None:
            observer.stop()
            observer.join()

    def _hear(self, event: WatchEvent) -> None:
        """What an emitter says (the observer's thread)."""
        if event.hints is not None:
            self._pending.merge(event.hints)
        with self._state:
            if event.gap:
                self._gaps.append(Gap(time.time_ns(), event.gap))
            if event.unwatched is not None:
                self._unwatched = event.unwatched
            if event.ticket in self._asked:
                self._answered.add(event.ticket)
            self._has_failed = self._has_failed or event.failed
            self._state.notify_all()

    def _supervise(self) -> None:
        """Put a new emitter in the place of one that failed, as long as the watcher lives."""
        pause_s = _FIRST_PAUSE_S
        while True:
            with self._state:
                self._state.wait_for(lambda: self._has_failed or self._is_stopping)
                if self._is_stopping:
                    return
            self._end()
            self._drop_hopeless()
            with self._state:
                if self._state.wait_for(lambda: self._is_stopping, pause_s):
                    return
            pause_s = _FIRST_PAUSE_S if self._replace() else min(pause_s * 2, _LONGEST_PAUSE_S)

    def _drop_hopeless(self) -> None:
        """A kind that fails again and again gives way to the next; the last one stays."""
        now = time.monotonic()
        self._failures.append(now)
        often = len(self._failures) == _TRIES and now - self._failures[0] < _TRIES_WITHIN_S
        if often and self._kind in self._kinds[:-1]:
            self._kinds = self._kinds[self._kinds.index(self._kind) + 1 :]
            self._failures.clear()

    def _replace(self) -> bool:
        """Begin anew; whether that worked. What changed meanwhile is anywhere."""
        with self._state:
            self._has_failed, self._unwatched = False, 0
        try:
            self._begin()
        except VolumeError as error:
            with self._state:
                self._has_failed = True
                self._reason = str(error)
            return False
        self._pending.merge(make_hints((), (EVERYTHING,), 0))
        return True


class _Listener(FileSystemEventHandler):
    """Where the observer hands its events."""

    def __init__(self, hear: _Hear) -> None:
        self._hear = hear

    def dispatch(self, event: FileSystemEvent) -> None:
        if isinstance(event, WatchEvent):
            self._hear(event)


class _Observer(BaseObserver):
    """watchdog's observer with one emitter; its end by an error is told."""

    def __init__(self, emitter: type[HintEmitter], settings: Settings, root: bytes, hear: _Hear) -> None:
        super().__init__(emitter, settings=settings)
        self.name = "watch-observer"
        self._root = root
        self._hear = hear
        self.schedule(_Listener(hear), os.fsdecode(root), recursive=True)
        (only,) = self.emitters
        assert isinstance(only, HintEmitter)
        self.emitter: Final = only

    def run(self) -> None:
        """What the thread does."""
        try:
            super().run()
        except Exception as error:  # whatever it is, the watcher must know that nobody listens any more
            hints = make_hints((), (EVERYTHING,), 0)
            self._hear(WatchEvent(self._root, hints, gap=str(error) or repr(error), failed=True))
