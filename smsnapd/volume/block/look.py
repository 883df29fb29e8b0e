"""A file system looked at through its device, time and again: what is in use, what may have moved."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from smsnapd.errors import VolumeError
from smsnapd.volume.block.allocation import bitmap_ranges, mark_allocated
from smsnapd.volume.block.device import Device
from smsnapd.volume.block.ext4 import (
    Geometry,
    Group,
    Range,
    read_geometry,
    read_groups,
    superblock_ranges,
)
from smsnapd.volume.block.extents import BlockFinder
from smsnapd.volume.block.inodes import Inode, InodeTables, inodes_at
from smsnapd.volume.block.masks import Masks, merged

RECENT_NS: Final = 20_000_000
"""Coarse clocks hide a second change within a tick; no kernel's tick is longer than this."""
_RECENT_OLD_NS: Final = 1_020_000_000
"""The same where inodes of 128 bytes keep whole seconds."""

_OLD_INODE: Final = 128
_START_IN_LOG: Final = 0x1C
"""Where a journal's superblock says at which block the log begins; 0 if there is nothing in it."""
_RESIZE_INODE: Final = 7


class Log(enum.Enum):
    """What becomes of the journal, all but its first block, in a look."""

    KEPT = enum.auto()
    LEFT_OUT = enum.auto()
    BY_ITS_STATE = enum.auto()
    """Left out if there is nothing in it."""


@dataclass(frozen=True)
class Look:
    """What one look found.

    `allocated` are the units in use, `suspects` the cells, in order, that may be others than at the look
    before, all of them in the first one. `directories` are the numbers of the directories that moved since.
    """

    allocated: Masks
    suspects: list[Range]
    directories: frozenset[int]


class Eyes:
    """Looks at the file system on a device. What is not ext4 is one whole that may change anywhere."""

    def __init__(self, device: Device, directory: Path) -> None:
        """`directory` is for unnamed files, and does not lie on the device."""
        self._device = device
        self._directory = directory
        self.geometry: Final = read_geometry(device)
        self._tables = InodeTables(self.geometry, directory) if self.geometry else None
        self._standing: list[Range] = []
        self._allocated: Masks | None = None

    def close(self) -> None:
        """Drop what is remembered. May be called more than once."""
        if self._tables is not None:
            self._tables.close()
        if self._allocated is not None:
            self._allocated.close()

    def look(self, since_ns: int, log: Log) -> Look:
        """Look now. All that was done before `since_ns`, by the clock of ctimes, is on the device.

        `VolumeError` if the file system was resized meanwhile, or makes no sense.
        """
        self._device.forget()
        before, self._allocated = self._allocated, Masks(self._device.size, self._directory)
        suspects: list[Range] = []
        directories: set[int] = set()
        if self.geometry is None or self._tables is None:
            self._allocated.add(Range(0, self._device.size))
            suspects.append(Range(0, self._device.size))
        else:
            sight = _Sight(self._checked(self.geometry), self._device)
            mark_allocated(sight.geometry, sight.groups, self._device, self._allocated)
            sight.treat(log, self._allocated)
            is_first = before is None
            if log is Log.KEPT:
                suspects += sight.journal()
            suspects += self._moved(sight, self._tables, since_ns, directories, is_first=is_first)
        if before is None:
            suspects = [Range(0, self._device.size)]
        else:
            suspects += before.differing(self._allocated)
            before.close()
        return Look(self._allocated, merged(suspects), frozenset(directories))

    def _checked(self, geometry: Geometry) -> Geometry:
        """The geometry as it is now: what it says of the journal may have changed, and nothing else."""
        now = read_geometry(self._device)
        if now is None or (now.blocks, now.block, now.uuid) != (
            geometry.blocks,
            geometry.block,
            geometry.uuid,
        ):
            why = "its file system was resized, or made anew, while it was read"
            raise VolumeError(f"read {self._device.path}", why, "run it again")
        return now

    def _moved(
        self, sight: _Sight, tables: InodeTables, since_ns: int, directories: set[int], *, is_first: bool
    ) -> Iterator[Range]:
        """The bytes that may have moved; takes note of the directories that have."""
        old = sight.geometry.inode_size == _OLD_INODE
        standing = self._standing if not is_first else []
        for inode in tables.look(
            sight.groups, self._device, since_ns - (_RECENT_OLD_NS if old else RECENT_NS)
        ):
            standing += sight.finder.standing(inode)
            if not is_first:
                yield from sight.finder.all(inode)
                if inode.is_directory:
                    directories.add(inode.number)
        self._standing = merged(standing)
        if not is_first:
            yield from self._standing
            yield from tables.parts
            yield from sight.always()


class _Sight:
    """What a look sees first: geometry and groups."""

    def __init__(self, geometry: Geometry, device: Device) -> None:
        self.geometry = geometry
        self._device = device
        self.groups: list[Group] = list(read_groups(geometry, device))
        self.finder = BlockFinder(geometry, device)

    def always(self) -> Iterator[Range]:
        """What the kernel changes in its own time, whatever inodes say."""
        # What is reserved is used by a resize alone, after which no look is taken.
        yield from superblock_ranges(self.geometry, reserved=False)
        for group in self.groups:
            yield from bitmap_ranges(self.geometry, group)
        hidden = set(range(1, self.geometry.first_inode)) - {_RESIZE_INODE, self.geometry.journal_inode}
        for inode in self._inodes(sorted(hidden | set(self.geometry.hidden_inodes))):
            yield from self.finder.all(inode)
        for span in self.journal()[:1]:
            yield Range(span.start, span.start + self.geometry.block)

    def treat(self, log: Log, allocated: Masks) -> None:
        """Take the journal out, but for its first block, or not."""
        journal = self.journal()
        if not journal or log is Log.KEPT or (log is Log.BY_ITS_STATE and not self._is_empty(journal[0])):
            return
        for span in journal:
            allocated.remove(span)
        allocated.add(Range(journal[0].start, journal[0].start + self.geometry.block))

    def _is_empty(self, journal: Range) -> bool:
        """Whether there is nothing in the journal that begins there."""
        start = self._device.read(journal.start + _START_IN_LOG, 4)
        return not self.geometry.needs_recovery and not any(start)

    def journal(self) -> list[Range]:
        """The journal's contents, in order; none if it has none, or another device has it."""
        inodes = self._inodes([self.geometry.journal_inode])
        return [span for inode in inodes for span in self.finder.content(inode)]

    def _inodes(self, numbers: list[int]) -> Iterator[Inode]:
        return inodes_at(self.geometry, self.groups, self._device, numbers)
