"""The watcher as the worker needs it: what is pending, whether that is all, and a call when it begins."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Final, Literal, NamedTuple, cast

from smsnapd.daemon.plan import Plan
from smsnapd.engine.backup.looks import Hints as Hinted
from smsnapd.errors import VolumeError
from smsnapd.volume.mounts import mount_points_below
from smsnapd.volume.watch import Counts, Gap, Hints, Watcher
from smsnapd.volume.watch.hints import EVERYTHING, make_hints

_LISTEN_S: Final = 5.0
_CATCH_UP_S: Final = 2.0

_Kind = Literal["auto", "fanotify", "inotify", "poll"]


class Look(NamedTuple):
    """What was taken for one run. `hints` is None where only a scan of everything will do.

    `gaps` are those known before anything was taken, `began_s` is from then (by the monotonic clock), and
    so are the `mounts` below the volume.
    """

    taken: Hints
    hints: Hinted | None
    gaps: int
    began_s: float
    mounts: frozenset[bytes] = frozenset()


class Watching:
    """A watcher and the rule when it is believed. For the worker's thread, but for `stop`.

    It is not believed until everything has been scanned once since it started, nor when it has lost events
    since the last such scan, nor when that is too long ago (architecture, invariant 3); nor when something
    has been mounted or unmounted below the volume, of which nobody tells.
    """

    def __init__(
        self,
        plan: Plan,
        wake: Callable[[], None],
        *,
        watcher: Watcher | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Watches from now on; VolumeError if there is no volume. `wake` is called when changes come."""
        self._clock = clock
        self._pace = plan.pace
        self._wake = wake
        self._root = plan.request.root
        self._place = _place_of(self._root)
        self._watcher = watcher or Watcher(poll_interval_s=plan.pace.incremental_s)
        self._watcher.start(plan.request.root, cast(_Kind, plan.config.volume.watch), plan.excludes)
        self._scanned_s: float | None = None
        self._scanned_gaps = 0
        self._scanned_mounts: frozenset[bytes] = frozenset()
        self._last_gap: Gap | None = None
        self._gap_count = 0
        self._is_over = False
        self._taken = threading.Event()
        self._listener = threading.Thread(target=self._listen, name="watch-listener", daemon=True)
        self._listener.start()

    def stop(self) -> None:
        """Watch no more."""
        self._is_over = True
        self._taken.set()
        self._watcher.stop()
        # Whatever is pending is of no use to anybody now, and this ends the listener's wait.
        self._watcher.give_back(make_hints((), (EVERYTHING,), 0))
        self._listener.join()

    @property
    def kind(self) -> str:
        """What changes are heard from."""
        return self._watcher.kind

    @property
    def reason(self) -> str:
        """Why it is that."""
        return self._watcher.reason

    @property
    def is_healthy(self) -> bool:
        """Whether all that should be watched is."""
        return self._watcher.is_healthy

    @property
    def gaps(self) -> tuple[Gap, ...]:
        """The latest times that events were lost."""
        return self._watcher.gaps

    @property
    def pending(self) -> Counts:
        """How much is pending."""
        return self._watcher.peek()

    @property
    def rescan_s(self) -> float:
        """When everything is to be scanned, whatever was heard."""
        return 0.0 if self._scanned_s is None else self._scanned_s + self._pace.rescan_s

    def due_s(self) -> float | None:
        """When the pending changes are to be committed; None if there are none."""
        pending = self._watcher.peek()
        if not (pending.directories or pending.subtrees):
            return None
        return self._pace.due_s(pending.first_event_s, pending.last_event_s)

    def has_any(self) -> bool:
        """Whether anything is not committed, or may not be: what has only just happened included."""
        caught_up = self._catch_up()
        return not caught_up or self._scanned_s is None or self.due_s() is not None

    def is_elsewhere(self) -> bool:
        """Whether the volume's path leads to another directory than the one that is watched."""
        return _place_of(self._root) != self._place

    def take(self, *, scan: bool) -> Look:
        """All that is pending, for a run that looks at everything if `scan`, or if it must."""
        gaps = self._count_gaps()
        mounts = frozenset(mount_points_below(os.path.realpath(self._root)))
        began_s, as_of_ns = self._clock(), time.time_ns()
        # Whoever has just written a file and asks for a backup wants it in.
        caught_up = self._catch_up()
        taken = self._watcher.take()
        self._taken.set()
        believed = (
            caught_up
            and self._scanned_s is not None
            and began_s < self.rescan_s
            and self._count_gaps() == self._scanned_gaps
            and EVERYTHING not in taken.subtrees
            and self._watcher.is_healthy
            and mounts == self._scanned_mounts
        )
        hints = Hinted(taken.directories, taken.subtrees, as_of_ns) if believed and not scan else None
        return Look(taken, hints, gaps, began_s, mounts)

    def committed(self, look: Look) -> None:
        """The run that this was taken for went well."""
        if look.hints is None:
            self._scanned_s, self._scanned_gaps = look.began_s, look.gaps
            self._scanned_mounts = look.mounts

    def failed(self, look: Look) -> None:
        """It did not: all that was taken is pending again."""
        self._watcher.give_back(look.taken)

    def _catch_up(self) -> bool:
        """Whether everything from before this call is among the hints."""
        can = self._watcher.kind != "poll" and self._watcher.is_healthy
        return can and self._watcher.catch_up(_CATCH_UP_S)

    def _count_gaps(self) -> int:
        """Gaps so far. The watcher keeps the latest hundred only, so they are counted from look to look."""
        gaps = self._watcher.gaps
        if gaps and gaps[-1] != self._last_gap:
            self._gap_count += 1
            self._last_gap = gaps[-1]
        return self._gap_count

    def _listen(self) -> None:
        """Wake the worker when changes begin; it asks by itself how they go on, until it has taken them."""
        while not self._is_over:
            # Cleared before the wait: a `take` at any moment after this line ends the pause below.
            self._taken.clear()
            if not self._watcher.wait(_LISTEN_S):
                continue
            self._wake()
            while not (self._is_over or self._taken.wait(_LISTEN_S)):
                pass


def _place_of(root: bytes) -> tuple[bytes, int, int]:
    """Which directory a path leads to: its real path, device and inode. VolumeError if it leads nowhere."""
    try:
        status = os.stat(root)
    except OSError as error:
        what = f"watch {os.fsdecode(root)}"
        raise VolumeError(what, error.strerror or str(error), "is it mounted?") from error
    return os.path.realpath(root), status.st_dev, status.st_ino
