"""The emitter that hears from fanotify, under watchdog's interfaces."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from typing import Final

from smsnapd.volume.watch.admission import Admission
from smsnapd.volume.watch.emitter import ROOT_CHECK_S, HintEmitter, RootIdentity, RootLostError, WatchEvent
from smsnapd.volume.watch.fanotify import FanotifyGroup, HandlePaths, Translator
from smsnapd.volume.watch.hints import Found, make_hints

_PAUSE_S: Final = 0.02
"""Between two batches: the kernel merges what repeats meanwhile, so a busy writer costs little here."""
_BATCH_READS: Final = 32
"""Reads before the hints are handed on, lest they wait for the end of a storm."""


class Wake:
    """An eventfd that any thread may set, also after it was closed."""

    def __init__(self) -> None:
        self.descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._lock = threading.Lock()

    def set(self) -> None:
        """Wake whoever polls it."""
        with self._lock:
            if self.descriptor >= 0:
                os.eventfd_write(self.descriptor, 1)

    def clear(self) -> None:
        """Let the next poll wait."""
        try:
            os.eventfd_read(self.descriptor)
        except BlockingIOError:
            return

    def close(self) -> None:
        """May be called more than once."""
        with self._lock:
            if self.descriptor >= 0:
                os.close(self.descriptor)
                self.descriptor = -1


class FanotifyEmitter(HintEmitter):
    """One mark on the file system that carries the root; events from outside of the root are dropped."""

    _wake: Wake | None = None

    def on_thread_start(self) -> None:
        """Set the mark. Raises `OSError` where it cannot be had, or handles cannot be opened."""
        self._identity = RootIdentity(self.root)
        admission = Admission(self.root, self.settings.excluded)
        self._paths = HandlePaths(self.root, admission)
        self._translator = Translator(self._paths, admission)
        self._due: list[int] = []
        with contextlib.ExitStack() as opened:
            self._group = FanotifyGroup(self.root, unlimited_queue=self.settings.unlimited_queue)
            opened.callback(self._group.close)
            self._paths.check()
            # Unmounting gives no event here, but the table of mounts can be polled (proc_pid_mountinfo(5)).
            self._mounts = opened.enter_context(open("/proc/self/mountinfo", "rb"))
            wake = Wake()
            opened.callback(wake.close)
            self._ready = select.poll()
            for descriptor in (self._group.descriptor, wake.descriptor):
                self._ready.register(descriptor, select.POLLIN)
            self._ready.register(self._mounts, select.POLLPRI)
            self._awake = select.poll()
            self._awake.register(wake.descriptor, select.POLLIN)
            self._wake, self._opened = wake, opened.pop_all()

    def run(self) -> None:
        """What the thread does."""
        with self._opened:
            super().run()

    def on_thread_stop(self) -> None:
        """End the wait of the thread."""
        if self._wake is not None:
            self._wake.set()

    def ask(self, ticket: int) -> None:
        """Have the ticket come back once the queue has been read to its end."""
        with self._tickets_lock:
            self._tickets.append(ticket)
        if self._wake is not None:
            self._wake.set()

    def queue_events(self, timeout: float) -> None:
        """Wait for events, then read them until there are no more."""
        assert self._wake is not None
        ready = self._ready.poll(ROOT_CHECK_S * 1000)
        self._wake.clear()
        if not self.should_keep_running():
            return
        self._check(self._mounts.fileno() in (descriptor for descriptor, _ in ready))
        # Only what was asked for before the queue is read can be answered after it.
        self._due += self._take_tickets()
        while not self._read_batch() and self.should_keep_running():
            pass
        self._answer(self._due)
        self._due = []
        self._awake.poll(_PAUSE_S * 1000)

    def _check(self, mounts_have_changed: bool) -> None:
        """Raise if this is no longer what is to be watched, or not watched any more."""
        if not mounts_have_changed:
            self._identity.check()
            return
        self._identity.check_now()
        if not self._group.is_marked():
            raise RootLostError("the watched file system was unmounted")

    def _read_batch(self) -> bool:
        """Read and say a batch; whether the queue is empty."""
        found, empty = Found(), False
        with self._paths.batch():
            for _ in range(_BATCH_READS):
                buffer = self._group.read()
                if not buffer:
                    empty = True
                    break
                self._translator.translate(buffer, found)
                if len(found) > self.settings.limit:
                    break
        found.subtrees |= self._paths.instead
        self._paths.instead.clear()
        if found:
            hints = make_hints(found.directories, found.subtrees, found.events)
            self.say(WatchEvent(self.root, hints, gap="; ".join(found.gaps)))
        return empty
