"""The emitter that hears from inotify through watchdog, with what watchdog hides.

watchdog 7's own `InotifyEmitter` loses changes in silence: it watches no more directories once the limit is
reached, gives handlers nothing when the queue overflows, and overflows it itself by its OPEN events. Its
reader, `InotifyFD`, and the observer are used here; the bookkeeping of directories is `WatchedTree`'s, which
also leaves out what is excluded or on another file system.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import threading
import time
from typing import Final

from watchdog.observers.inotify_c import (
    CallbackId,
    InotifyConstants,
    InotifyEvent,
    InotifyFD,
    Mask,
    Watch,
    WatchCallback,
    WatchDescriptor,
    inotify_add_watch,
    inotify_rm_watch,
)

from smsnapd.volume.watch.emitter import ROOT_CHECK_S, HintEmitter, RootIdentity, RootLostError, WatchEvent
from smsnapd.volume.watch.hints import make_hints
from smsnapd.volume.watch.inotify_tree import WatchedTree

_PAUSE_S: Final = 0.01
"""Between two reads: the kernel merges what repeats meanwhile, so a busy writer costs little here."""
_DETACHED_S: Final = 1.0
"""Seconds after which a directory that was moved from somewhere turns up nowhere: it left the root."""
_REBUILD_S: Final = 1.0
"""Seconds from an overflow to the new walk: the storm is not over yet."""
_REBUILD_SHARE: Final = 5
"""Seconds of rest for each second of the last walk."""
_TICKET_MASK: Final = InotifyConstants.IN_ATTRIB

# watchdog logs an overflow, which is told as a gap here, and would write it to standard error by itself.
logging.getLogger("watchdog").addHandler(logging.NullHandler())


class InotifyReader(InotifyFD):
    """watchdog's reader of one inotify instance, whose end by an error is told."""

    def __init__(self, wake: threading.Event) -> None:
        """`wake` is set when the thread ends by an error, which is then in `failure`."""
        super().__init__()
        self.name = "watch-InotifyReader"
        os.set_inheritable(self._inotify_fd, False)
        self.failure = ""
        self._wake = wake

    def run(self) -> None:
        """What the thread does."""
        try:
            while self.should_keep_running():
                for event in self.read_events():
                    self.handle_event(event)
                self.stopped_event.wait(_PAUSE_S)
        except Exception as error:  # whatever it is, the emitter must know that nobody reads any more
            self.failure = str(error) or repr(error)
            self._wake.set()

    def add_callback(
        self, path: bytes, mask: Mask, callback: WatchCallback, id_: CallbackId
    ) -> WatchDescriptor:
        """Watch `path`, or say again that it is watched, which watchdog's own takes for a mistake.

        Raises `OSError` for every error; watchdog's own takes EACCES for success.
        """
        with self._lock:
            if self._closed:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            watch = inotify_add_watch(self._inotify_fd, path, mask)
            if watch == -1:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number), path)
            if watch not in self._watch_for_wd:
                self._watch_for_wd[watch] = Watch(watch, mask, path)
            self._watch_for_wd[watch].callbacks[id_] = callback
            return watch

    def pass_through(self, callback: WatchCallback) -> None:
        """Have `callback.on_watch_deleted` called once everything queued by now has been handled.

        A watch that is added and removed at once leaves an IN_IGNORED at the end of the queue. Raises
        `OSError`, for instance if there is no watch left.
        """
        descriptor = os.memfd_create("smsnapd-ticket", os.MFD_CLOEXEC)
        try:
            path = b"/proc/self/fd/%d" % descriptor
            watch = self.add_callback(path, _TICKET_MASK, callback, CallbackId(id(callback)))
            with self._lock:
                if not self._closed:
                    inotify_rm_watch(self._inotify_fd, watch)
        finally:
            os.close(descriptor)


class _Ticket(WatchCallback):
    """A ticket on its way through the queue."""

    def __init__(self, emitter: InotifyEmitter, number: int) -> None:
        self._emitter = emitter
        self._number = number

    def on_event(self, event: InotifyEvent) -> None:
        """Nothing happens to it."""

    def on_watch_deleted(self, wd: WatchDescriptor) -> None:
        """It has come to the front."""
        self._emitter.arrived(self._number)

    def on_queue_overflow(self) -> None:
        """It may be lost; the emitter answers all after the walk."""


class InotifyEmitter(HintEmitter):
    """One watch for each directory below the root; what cannot be watched is polled."""

    _reader: InotifyReader | None = None

    def on_thread_start(self) -> None:
        """Set the watches. Raises `OSError` where there is no inotify, or no root."""
        self._identity = RootIdentity(self.root)
        self._wake = threading.Event()
        self._asked: set[int] = set()
        self._poll_at_s = self._rebuild_at_s = 0.0
        self._unwatched = 0
        reader = InotifyReader(self._wake)
        reader.start()
        try:
            self._tree = WatchedTree(self.root, self.settings, reader, self._wake)
        except OSError:
            reader.stop()
            reader.join()
            raise
        self._reader = reader
        self._poll_at_s = time.monotonic() + self.settings.poll_interval_s

    def run(self) -> None:
        """What the thread does."""
        try:
            super().run()
        finally:
            assert self._reader is not None
            self._tree.close()
            self._reader.stop()
            self._reader.join()

    def on_thread_stop(self) -> None:
        """End the wait of the thread."""
        if self._reader is not None:
            self._wake.set()

    def ask(self, ticket: int) -> None:
        """Have the ticket come back once the queue has been read up to this moment."""
        assert self._reader is not None
        with self._tickets_lock:
            self._asked.add(ticket)
        try:
            self._reader.pass_through(_Ticket(self, ticket))
        except OSError:
            # No watch is left for it: it does not come back, and the asker's time runs out.
            with self._tickets_lock:
                self._asked.discard(ticket)

    def arrived(self, ticket: int) -> None:
        """The ticket has passed through the queue."""
        with self._tickets_lock:
            self._tickets.append(ticket)
        self._wake.set()

    def queue_events(self, timeout: float) -> None:
        """Wait for events, or until something is due, and say what there is to say."""
        assert self._reader is not None
        self._wake.wait(self._wait_s())
        self._wake.clear()
        if not self.should_keep_running():
            return
        self._check()
        due = self._take_tickets()
        due += self._do_what_is_due()
        self._say_found()
        if self._tree.is_lost:
            with self._tickets_lock:
                self._tickets += due
            return
        with self._tickets_lock:
            self._asked.difference_update(due)
        self._answer(due)

    def _check(self) -> None:
        """Raise what has gone wrong in the reader's thread."""
        assert self._reader is not None
        if self._reader.failure:
            raise OSError(errno.EIO, f"the reader of inotify has ended: {self._reader.failure}")
        if self._tree.is_root_gone:
            raise RootLostError("the watched directory was deleted, or its file system unmounted")
        self._identity.check()

    def _wait_s(self) -> float:
        now, wait_s = time.monotonic(), ROOT_CHECK_S
        if self._tree.has_detached:
            wait_s = _DETACHED_S
        if self._tree.is_lost:
            wait_s = min(wait_s, max(self._rebuild_at_s - now, 0.0))
        if self._tree.unwatched:
            wait_s = min(wait_s, max(self._poll_at_s - now, 0.0))
        return wait_s

    def _do_what_is_due(self) -> list[int]:
        """Walk, poll, let go of watches; tickets that the queue may have lost, but a walk has covered."""
        now = time.monotonic()
        self._tree.expire(now - _DETACHED_S)
        if now >= self._poll_at_s:
            self._poll_at_s = now + self.settings.poll_interval_s
            self._tree.poll()
        if not self._tree.is_lost:
            self._rebuild_at_s = max(self._rebuild_at_s, now + _REBUILD_S)
            return []
        if now < self._rebuild_at_s:
            return []
        with self._tickets_lock:
            asked = list(self._asked)
        self._tree.rebuild()
        end = time.monotonic()
        self._rebuild_at_s = end + max(_REBUILD_S, _REBUILD_SHARE * (end - now))
        return asked

    def _say_found(self) -> None:
        found, unwatched = self._tree.collect()
        if found or found.gaps or unwatched != self._unwatched:
            self._unwatched = unwatched
            hints = make_hints(found.directories, found.subtrees, found.events) if found else None
            self.say(WatchEvent(self.root, hints, gap="; ".join(found.gaps), unwatched=unwatched))
