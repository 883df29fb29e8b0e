"""Inodes as they lie in ext4's tables, and which of them moved since the last look."""

from __future__ import annotations

import os
import struct
import tempfile
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from smsnapd.errors import VolumeError
from smsnapd.volume.block.device import Device
from smsnapd.volume.block.ext4 import Geometry, Group, Range, used_table_range

STEP: Final = 64 * 1024
"""Bytes of a table that are looked at together."""

_HASH: Final = struct.calcsize("q")
_MODE: Final = struct.Struct("<H")
_TIME: Final = struct.Struct("<I")
_CTIME, _CTIME_EXTRA, _EXTRA_SIZE = 0xC, 0x84, 0x80
_DIRECTORY: Final = 0x4000
_FORMAT: Final = 0xF000
_GOOD_OLD_SIZE: Final = 128
_SECOND: Final = 1_000_000_000


class Inode(NamedTuple):
    """An inode's number and its bytes in the table."""

    number: int
    raw: bytes

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        mode: int = _MODE.unpack_from(self.raw)[0]
        return mode & _FORMAT == _DIRECTORY

    @property
    def ctime_ns(self) -> int:
        """When it changed last; to the second in an inode of 128 bytes."""
        seconds: int = _TIME.unpack_from(self.raw, _CTIME)[0]
        if len(self.raw) == _GOOD_OLD_SIZE or _MODE.unpack_from(self.raw, _EXTRA_SIZE)[0] < 8:
            return seconds * _SECOND
        extra: int = _TIME.unpack_from(self.raw, _CTIME_EXTRA)[0]
        return (seconds + ((extra & 3) << 32)) * _SECOND + (extra >> 2)


class _Slots:
    """A stretch of bytes for each group that has any, zeros at first, in an unnamed file."""

    def __init__(self, size: int, directory: Path) -> None:
        self._size = size
        self._file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 (closed by close())
        self._slots: dict[int, int] = {}

    def close(self) -> None:
        self._file.close()

    def read(self, group: int, offset: int, length: int) -> bytes:
        slot = self._slots.get(group)
        if slot is None:
            return bytes(length)
        return os.pread(self._file.fileno(), length, slot * self._size + offset).ljust(length, b"\0")

    def write(self, group: int, offset: int, data: bytes) -> None:
        slot = self._slots.setdefault(group, len(self._slots))
        try:
            os.pwrite(self._file.fileno(), data, slot * self._size + offset)
        except OSError as error:
            what = "remember the inodes of the volume"
            raise VolumeError(what, error.strerror or str(error), "make room in /var/tmp") from error


class InodeTables:
    """Remembers the used inodes of all tables, eight bytes each, in a file.

    An inode counts as moved if any of its bytes did; so does one whose ctime was not older than `recent_ns`
    of the look before, since a clock's tick may hide a second change. `parts` are the bytes of tables that
    the last look found changed.
    """

    def __init__(self, geometry: Geometry, directory: Path) -> None:
        self._geometry = geometry
        per_group = -(-geometry.inodes_per_group * geometry.inode_size // STEP)
        self._parts_per_group = per_group
        self._known = _Slots(geometry.inodes_per_group * _HASH, directory)
        self._digests = _Slots(per_group * _HASH, directory)
        self._recent: set[int] = set()
        self._split = struct.Struct(f"{geometry.inode_size}s").iter_unpack
        self._empty = bytes(geometry.inode_size)
        self.parts: list[Range] = []

    def close(self) -> None:
        """Drop what is remembered. May be called more than once."""
        self._known.close()
        self._digests.close()

    def look(self, groups: list[Group], device: Device, recent_ns: int) -> Iterator[Inode]:
        """What moved since the last look; in the first one, all inodes ever used. Read it to its end."""
        unsure, self._recent, self.parts = self._recent, set(), []
        unsure_parts = {self._part_of(number) for number in unsure}
        for group in groups:
            for start in range(0, group.used_inodes * self._geometry.inode_size, STEP):
                part = group.number * self._parts_per_group + start // STEP
                raw = self._changed(group, start, device, anyway=part in unsure_parts)
                if raw:
                    row = start // self._geometry.inode_size
                    yield from self._compare(group.number, row, raw, unsure, recent_ns)

    def _part_of(self, number: int) -> int:
        group, row = divmod(number - 1, self._geometry.inodes_per_group)
        return group * self._parts_per_group + row * self._geometry.inode_size // STEP

    def _changed(self, group: Group, start: int, device: Device, *, anyway: bool) -> bytes:
        """The bytes of a part of a table, if they are others than before, or `anyway`; else nothing."""
        span = used_table_range(self._geometry, group)
        raw = device.read(span.start + start, min(STEP, span.end - span.start - start))
        digest = hash(raw).to_bytes(_HASH, "little", signed=True)
        at = start // STEP * _HASH
        if self._digests.read(group.number, at, _HASH) == digest:
            return raw if anyway else b""
        self._digests.write(group.number, at, digest)
        self.parts.append(Range(span.start + start, span.start + start + len(raw)))
        return raw

    def _compare(
        self, group: int, start: int, raw: bytes, unsure: set[int], recent_ns: int
    ) -> Iterator[Inode]:
        inodes = [item[0] for item in self._split(raw)]
        fresh = array("q", map(hash, inodes))
        known = array("q", self._known.read(group, start * _HASH, len(inodes) * _HASH))
        self._known.write(group, start * _HASH, fresh.tobytes())
        first = group * self._geometry.inodes_per_group + start
        rows = [row for row, (new, old) in enumerate(zip(fresh, known, strict=True)) if new != old]
        if unsure:
            rows += [row for row in range(len(inodes)) if first + row + 1 in unsure and row not in rows]
        for row in rows:
            inode = Inode(first + row + 1, inodes[row])
            if inode.raw != self._empty:
                if inode.ctime_ns >= recent_ns:
                    self._recent.add(inode.number)
                yield inode


def inode_at(geometry: Geometry, groups: list[Group], device: Device, number: int) -> Inode:
    """One inode by its number, from its table."""
    group, row = divmod(number - 1, geometry.inodes_per_group)
    start = groups[group].inode_table * geometry.block + row * geometry.inode_size
    return Inode(number, device.read(start, geometry.inode_size))


def inodes_at(geometry: Geometry, groups: list[Group], device: Device, numbers: list[int]) -> Iterator[Inode]:
    """Some inodes, those that can be."""
    for number in numbers:
        if 0 < number <= geometry.groups * geometry.inodes_per_group:
            yield inode_at(geometry, groups, device, number)
