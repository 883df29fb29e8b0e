"""Watches on every directory below a root, kept right while directories come, go and move.

inotify(7) watches directories, not trees. The rules that make it whole: a directory is watched first and
listed then, and hints are given only after that; a directory that was moved is walked again with all that
lies below, since only that tells which inode has which path now; after an overflow everything is.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Final, Protocol

from watchdog.observers.inotify_c import (
    CallbackId,
    InotifyConstants,
    InotifyEvent,
    Mask,
    WatchCallback,
    WatchDescriptor,
)

from smsnapd.model import join_path
from smsnapd.volume.watch.admission import Admission
from smsnapd.volume.watch.directories import Directory
from smsnapd.volume.watch.emitter import Settings
from smsnapd.volume.watch.hints import EVERYTHING, Found
from smsnapd.volume.watch.walk import Walker

_C = InotifyConstants
_ENTRY: Final = _C.IN_CREATE | _C.IN_DELETE | _C.IN_MOVED_FROM | _C.IN_MOVED_TO
"""Events that change a directory, and with it its own times."""
_MASK: Final = Mask(
    _ENTRY | _C.IN_MODIFY | _C.IN_ATTRIB | _C.IN_CLOSE_WRITE | _C.IN_DONT_FOLLOW | _C.IN_ONLYDIR
)
"""Nothing that reading does: with OPEN and CLOSE_NOWRITE the walk itself would overflow the queue."""


class Reader(Protocol):
    """The reader of an inotify instance, as far as the tree needs it."""

    def add_callback(
        self, path: bytes, mask: Mask, callback: WatchCallback, id_: CallbackId
    ) -> WatchDescriptor:
        """Watch `path`; raises `OSError`."""

    def remove_callbacks(self, callbacks: list[tuple[WatchDescriptor, CallbackId]]) -> None:
        """Watch these no longer."""


class WatchedTree(WatchCallback):
    """The watches below one root, and what their events say.

    The reader's thread brings events, the emitter's thread collects hints and has the rest done.
    """

    def __init__(self, root: bytes, settings: Settings, reader: Reader, wake: threading.Event) -> None:
        """Watch everything there is. Raises `OSError` if there is no root or no watch for it."""
        self._reader = reader
        self._wake = wake
        self._id: Final = CallbackId(id(self))
        self._lock = threading.RLock()
        self._found = Found()
        self._dirty: set[Directory] = set()
        self._is_closed = False
        self.is_lost = False
        """Whether events were lost and the watches are not right until the next `rebuild`."""
        self.is_root_gone = False
        self._admission = Admission(root, settings.excluded)
        with self._lock:
            self._walker = Walker(root, self._admission, self._add, may_raise_limit=settings.raise_limits)
            self._directories = self._walker.directories
            self._walker.walk_all()
            self._note_shortage(0)

    @property
    def has_detached(self) -> bool:
        """Whether `expire` will have something to do."""
        return self._directories.has_detached

    @property
    def unwatched(self) -> int:
        """Directories without a watch when they were last counted."""
        return self._walker.unwatched

    def close(self) -> None:
        """Hear no more."""
        self._is_closed = True

    def collect(self) -> tuple[Found, int]:
        """The hints since the last call, and how many directories at least get no events."""
        with self._lock:
            self._name_dirty()
            found, self._found = self._found, Found()
            return found, max(self.unwatched, int(self.is_lost))

    def expire(self, before_s: float) -> None:
        """Remove the watches of what left the root before this time."""
        with self._lock:
            watches = self._directories.expired(before_s)
            if watches:
                self._reader.remove_callbacks([(WatchDescriptor(watch), self._id) for watch in watches])

    def rebuild(self) -> None:
        """Walk everything again; after that nothing is lost, and everything must be looked at."""
        with self._lock:
            self.is_lost = False
            self._walk_all()
            self._found.subtrees.add(EVERYTHING)

    def poll(self) -> None:
        """Try again to watch what is not; whatever that comes to, it must be looked at."""
        with self._lock:
            polled = self._walker.polled
            if polled:
                self._walk_all()
                self._found.subtrees |= polled

    def on_event(self, event: InotifyEvent) -> None:
        """An event on a watch (the reader's thread)."""
        with self._lock:
            directory = None if self._is_closed else self._directories.get(event.wd)
            if directory is None:
                return
            if event.name:
                self._on_name(directory, event)
            elif event.mask & _C.IN_ATTRIB:
                # The directory itself: what changed stands in the listing of its parent.
                self._dirty.add(directory.parent or directory)
                self._found.events += 1
        self._wake.set()

    def on_watch_deleted(self, wd: WatchDescriptor) -> None:
        """The watched directory is gone (the reader's thread)."""
        with self._lock:
            if not self._is_closed and self._directories.remove(wd) is self._directories.root:
                self.is_root_gone = True
                self._wake.set()

    def on_queue_overflow(self) -> None:
        """Events were lost (the reader's thread)."""
        with self._lock:
            self.is_lost = True
            self._found.subtrees.add(EVERYTHING)
            self._found.events += 1
            self._found.gaps.append("the queue of inotify overflowed, events were lost")
        self._wake.set()

    def _add(self, path: bytes) -> int:
        return self._reader.add_callback(path, _MASK, self, self._id)

    def _on_name(self, directory: Directory, event: InotifyEvent) -> None:
        mask, name = event.mask, event.name
        on_directory = bool(mask & _C.IN_ISDIR)
        matched = self._admission.has_patterns and self._matches(directory, name, on_directory)
        if matched and not mask & _ENTRY:
            return
        self._found.events += 1
        self._dirty.add(directory)
        if not on_directory:
            return
        if mask & _C.IN_MOVED_FROM:
            self._directories.detach(directory, name)
            # Exchanged with another directory: an earlier event bound that, and no later one tells of it.
            if not matched:
                self._adopt(directory, name, moved=True)
        elif not matched and not mask & _C.IN_DELETE:
            self._adopt(directory, name, moved=bool(mask & _C.IN_MOVED_TO))

    def _matches(self, directory: Directory, name: bytes, on_directory: bool) -> bool:
        path = self._directories.path(directory)
        return path is not None and self._admission.matches(path, name, is_directory=on_directory)

    def _adopt(self, parent: Directory, name: bytes, *, moved: bool) -> None:
        """A directory has come, or been moved, or has new permissions: watch it, if that is not so yet."""
        above = self._directories.path(parent)
        if above is None:
            return
        path = join_path(above, name)
        if self._walker.is_left_out(path):
            return
        known = parent.children.get(name)
        if known is not None and not moved:
            with contextlib.suppress(OSError):
                # Walked already, by the walk of its parent, and right ever since.
                if self._directories.is_bound(known, self._walker.add(path)):
                    self._dirty.add(known)
                    return
        before = self.unwatched
        is_empty = self._walker.walk(parent, name, path)
        if moved or not is_empty:
            self._found.subtrees.add(path)
        elif (directory := parent.children.get(name)) is not None:
            self._dirty.add(directory)
        self._note_shortage(before)

    def _name_dirty(self) -> None:
        dirty, self._dirty = self._dirty, set()
        for directory in dirty:
            # None: it was moved or deleted meanwhile, and that has given a hint where it matters.
            if (path := self._directories.path(directory)) is not None:
                self._found.directories.add(path)

    def _walk_all(self) -> None:
        # The walk detaches every directory known so far.
        self._name_dirty()
        before = self.unwatched
        self._walker.walk_all()
        self._note_shortage(before)
        self.expire(time.monotonic())

    def _note_shortage(self, before: int) -> None:
        """A gap begins where the first directory gets no watch."""
        if self.unwatched and not before:
            self._found.gaps.append(self._walker.shortage())
            self._wake.set()
