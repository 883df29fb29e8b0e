"""The way an image is read: most of it from a volume in use, what changed since while it holds still."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from smsnapd.disk import write_at
from smsnapd.engine.image.names import Names
from smsnapd.engine.image.storage import ImageStorage
from smsnapd.engine.progress import Progress
from smsnapd.errors import VolumeError
from smsnapd.volume.block.cells import Cell, CellReader
from smsnapd.volume.block.device import Device
from smsnapd.volume.block.ext4 import Range
from smsnapd.volume.block.look import Eyes, Log, Look
from smsnapd.volume.block.masks import CELL, Masks, merged
from smsnapd.volume.frozen import held_frozen
from smsnapd.volume.mounts import Mount, syncfs
from smsnapd.volume.still import held_read_only
from smsnapd.volume.tree import Tree
from smsnapd.volume.urgent import urgently

QUICK_S: Final = 1.0
PASSES: Final = 3
"""Live passes, until one takes less than this, and at most as many: then little is left for the still one."""

HOLD_S: Final = 60.0
"""How long a volume is held at most."""

_BATCH: Final = 16


@dataclass(frozen=True)
class Moment:
    """What an image stands for: the moment; and how long writers waited for it at most, in seconds."""

    time_ns: int
    held_s: float


class Passes:
    """Reads one image into `storage`. The storage's map says what is known of each cell before."""

    def __init__(
        self,
        mount: Mount,
        device: Device,
        digest_key: bytes,
        tree: Tree,
        names: Names,
        storage: ImageStorage,
        directory: Path,
        clock_ns: Callable[[], int],
        progress: Progress,
    ) -> None:
        """`directory` is for unnamed files, and not on the volume if that is to be held."""
        self._mount = mount
        self._device = device
        self._reader = CellReader(device, digest_key)
        self._tree = tree
        self._names = names
        self._storage = storage
        self._directory = directory
        self._clock_ns = clock_ns
        self._progress = progress
        self._held_s = 0.0
        self.eyes = Eyes(device, directory)

    def close(self) -> None:
        """Let go of what is held in files. May be called more than once."""
        self.eyes.close()

    def live(self) -> Moment:
        """Passes over a volume in use, the last one quick if it can be; the moment is that of the start.

        What changed since then is in the image or is not: deltas have all that is not older than the start.
        So the names are all that were seen, lest one stays that was taken away meanwhile.
        """
        started_ns = self._clock_ns()
        moved: set[int] = set()
        for number in range(PASSES):
            began_s = time.monotonic()
            syncfs(self._tree.open_directory(b""))
            look = self.eyes.look(started_ns, Log.KEPT)
            moved |= look.directories
            if not number:
                self._names.scan()
            self._names.add(sorted(moved))
            self._store(look, look.suspects)
            if number and time.monotonic() - began_s < QUICK_S:
                break
        self._names.add(sorted(moved))
        return Moment(started_ns, 0.0)

    def still(self, *, read_only: bool) -> Moment:
        """Passes while the volume is in use, and a short last one while it is frozen or read-only."""
        look = self._look_from_now()
        self._names.scan()
        self._store(look, look.suspects)
        moved = set(look.directories)
        for _ in range(PASSES - 1):
            started_s = time.monotonic()
            look = self._look_from_now()
            moved |= look.directories
            self._store(look, look.suspects)
            if time.monotonic() - started_s < QUICK_S:
                break
        return self._last(moved, read_only=read_only)

    def _store(self, look: Look, spans: list[Range]) -> None:
        size = sum(min(end, self._device.size) - start for start, end in spans)
        self._progress.phase("read the device", bytes=size)
        self._storage.store(spans, look.allocated)

    def _look_from_now(self) -> Look:
        """A look at the device when all that was done until now is in its place there.

        A commit of the journal leaves metadata where they were; only a freeze writes them back.
        """
        since_ns = self._clock_ns()
        syncfs(self._tree.open_directory(b""))
        if self.eyes.geometry is not None:
            with urgently(), held_frozen(self._mount, limit_s=HOLD_S) as guard:
                since_ns = self._clock_ns()
            self._held_since(guard.began_s)
        return self.eyes.look(since_ns, Log.LEFT_OUT)

    def _last(self, moved: set[int], *, read_only: bool) -> Moment:
        """Hold the volume, copy what changed since the look before, let it go, and store the copy."""
        self._progress.phase("hold the volume")
        syncfs(self._tree.open_directory(b""))
        with tempfile.TemporaryFile(dir=self._directory) as copy:
            os.truncate(copy.fileno(), self._device.size)
            with self._hold(read_only=read_only) as (beat, began_s):
                moment_ns = self._clock_ns()
                self._device.tell = beat
                look = self.eyes.look(moment_ns, Log.BY_ITS_STATE)
                changed = merged(list(self._copy(look, copy.fileno())))
                self._mend(moved | look.directories, beat)
            self._held_since(began_s)
            self._progress.phase("store what changed", bytes=sum(end - start for start, end in changed))
            source = f"/proc/{os.getpid()}/fd/{copy.fileno()}"
            self._storage.store(changed, look.allocated, source)
        return Moment(moment_ns, self._held_s)

    def _mend(self, moved: set[int], beat: Callable[[], None]) -> None:
        """The tree as it is now. What is not ext4 tells of no directories: then all is looked at."""
        if self.eyes.geometry is None:
            self._names.scan_again(beat)
        else:
            self._names.mend(sorted(moved), beat)

    def _held_since(self, began_s: float) -> None:
        """Writers had to wait from then until now."""
        self._held_s = max(self._held_s, time.monotonic() - began_s)

    @contextmanager
    def _hold(self, *, read_only: bool) -> Iterator[tuple[Callable[[], None], float]]:
        """Hold the volume; gives what must be called now and then meanwhile, and when the hold began."""
        try:
            if read_only:
                with urgently(), held_read_only(self._mount.mount_point, limit_s=HOLD_S):
                    yield lambda: None, time.monotonic()
            else:
                with urgently(), held_frozen(self._mount, limit_s=HOLD_S) as guard:
                    yield guard.beat, guard.began_s
        finally:
            self._device.tell = None

    def _copy(self, look: Look, copy: int) -> Iterator[Range]:
        """Copy the cells that are others than the map says to where they belong in a file; which they are."""
        cells = self._storage.cells
        for span in look.suspects:
            first, last = span.start // CELL, min(-(-span.end // CELL), cells.cells)
            for start in range(first, last, _BATCH):
                end = min(start + _BATCH, last)
                yield from self._copy_some(start, _masks(look.allocated, start, end), copy)

    def _copy_some(self, start: int, allowed: list[int], copy: int) -> Iterator[Range]:
        cells = self._storage.cells
        for row, mask in enumerate(allowed):
            if not mask and cells.masks[start + row]:
                yield _range_of(start + row)
        for cell in self._reader.read(start, allowed):
            if cell.digest != cells.digests(cell.number, cell.number + 1):
                _write(copy, cell)
                yield _range_of(cell.number)


def _masks(allowed: Masks, start: int, end: int) -> list[int]:
    return list(memoryview(allowed.between(start, end)).cast("H"))


def _range_of(cell: int) -> Range:
    return Range(cell * CELL, (cell + 1) * CELL)


def _write(copy: int, cell: Cell) -> None:
    """Put the data of a cell where they belong in a file."""
    try:
        for offset, data in cell.data:
            write_at(copy, data, cell.number * CELL + offset)
    except OSError as error:
        what = "keep what changed on the volume while it is held"
        raise VolumeError(what, error.strerror or str(error), "make room in /var/tmp") from error
