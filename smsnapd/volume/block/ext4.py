"""ext4's superblock and group descriptors: where its metadata lie (the kernel's ext4.h)."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from smsnapd.errors import VolumeError
from smsnapd.volume.block.device import Device

INODE_UNINIT: Final = 0x1
BLOCK_UNINIT: Final = 0x2

_SUPERBLOCK: Final = 1024
"""Offset and size of the superblock."""
_MAGIC: Final = 0xEF53
_COMPAT_SPARSE_SUPER2: Final = 0x200
_INCOMPAT_RECOVER: Final = 0x4
_INCOMPAT_META_BG: Final = 0x10
_INCOMPAT_64BIT: Final = 0x80
_INCOMPAT_MMP: Final = 0x100
_RO_SPARSE_SUPER: Final = 0x1
_RO_GDT_CSUM: Final = 0x10
_RO_METADATA_CSUM: Final = 0x400
_RO_BIGALLOC: Final = 0x200
_INCOMPAT_KNOWN: Final = 0x3E7D6
"""filetype, recover, meta_bg, extents, 64bit, mmp, flex_bg, ea_inode, csum_seed, largedir, inline_data,
encrypt, casefold: with these, blocks are where this module looks for them."""


class Range(NamedTuple):
    """Bytes of the device, from `start` to before `end`."""

    start: int
    end: int


class Group(NamedTuple):
    """A block group: the blocks of its bitmaps and inode table, its flags, and its inodes ever used."""

    number: int
    block_bitmap: int
    inode_bitmap: int
    inode_table: int
    flags: int
    used_inodes: int


@dataclass(frozen=True)
class Geometry:
    """What the superblock says. Sizes are in bytes; `cluster` is what a bit of a block bitmap stands for."""

    blocks: int
    block: int
    cluster: int
    first_block: int
    blocks_per_group: int
    inodes_per_group: int
    inode_size: int
    first_inode: int
    compat: int
    incompat: int
    ro_compat: int
    uuid: str
    reserved_gdt: int
    desc_size: int
    first_meta_bg: int
    backup_groups: tuple[int, int]
    journal_inode: int
    hidden_inodes: tuple[int, ...]
    mmp_block: int

    @property
    def groups(self) -> int:
        """How many block groups there are."""
        return -(-(self.blocks - self.first_block) // self.blocks_per_group)

    @property
    def needs_recovery(self) -> bool:
        """Whether the journal holds what is not in its place yet."""
        return bool(self.incompat & _INCOMPAT_RECOVER)

    @property
    def counts_used_inodes(self) -> bool:
        """Whether descriptors tell what of inode tables was never used, and which bitmaps are not set up."""
        return bool(self.ro_compat & (_RO_GDT_CSUM | _RO_METADATA_CSUM))

    def first_block_of(self, group: int) -> int:
        """The first block of a group."""
        return self.first_block + group * self.blocks_per_group

    def range_of(self, block: int, count: int = 1) -> Range:
        """The bytes of some blocks."""
        return Range(block * self.block, (block + count) * self.block)

    def has_super(self, group: int) -> bool:
        """Whether a copy of the superblock lies at the group's start."""
        if self.compat & _COMPAT_SPARSE_SUPER2:
            return group == 0 or group in self.backup_groups
        if group <= 1 or not self.ro_compat & _RO_SPARSE_SUPER:
            return True
        return any(_is_power(group, base) for base in (3, 5, 7))


class Readable(Protocol):
    """A device, or what begins like one; `size` is in bytes."""

    @property
    def size(self) -> int:
        """Its size."""

    def read(self, offset: int, size: int) -> bytes:
        """So many of its bytes."""


def read_geometry(device: Readable) -> Geometry | None:
    """What lies on the device if it is an ext2, ext3 or ext4 that this module knows in full, else None."""
    if device.size < 2 * _SUPERBLOCK:
        return None
    raw = device.read(_SUPERBLOCK, _SUPERBLOCK)
    u16, u32 = _Reader(raw, "<H"), _Reader(raw, "<I")
    incompat, ro_compat = u32(0x60), u32(0x64)
    if u16(0x38) != _MAGIC or incompat & ~_INCOMPAT_KNOWN or u32(0x18) > 6:
        return None
    block = 1024 << u32(0x18)
    is_64bit = bool(incompat & _INCOMPAT_64BIT)
    dynamic = u32(0x4C) > 0
    geometry = Geometry(
        blocks=u32(0x4) | (u32(0x150) << 32 if is_64bit else 0),
        block=block,
        cluster=1024 << u32(0x1C) if ro_compat & _RO_BIGALLOC else block,
        first_block=u32(0x14),
        blocks_per_group=u32(0x20),
        inodes_per_group=u32(0x28),
        inode_size=u16(0x58) if dynamic else 128,
        first_inode=u32(0x54) if dynamic else 11,
        compat=u32(0x5C),
        incompat=incompat,
        ro_compat=ro_compat,
        uuid=str(uuid.UUID(bytes=raw[0x68:0x78])),
        reserved_gdt=u16(0xCE),
        desc_size=(u16(0xFE) or 64) if is_64bit else 32,
        first_meta_bg=u32(0x104),
        backup_groups=(u32(0x24C), u32(0x250)),
        journal_inode=u32(0xE0),
        hidden_inodes=tuple(filter(None, (u32(0x240), u32(0x244), u32(0x26C), u32(0x280)))),
        mmp_block=_Reader(raw, "<Q")(0x168) if incompat & _INCOMPAT_MMP else 0,
    )
    return geometry if _is_possible(geometry, device.size) else None


class _Reader:
    """Reads one kind of number at offsets of some bytes."""

    def __init__(self, raw: bytes, form: str) -> None:
        self._raw = raw
        self._unpack = struct.Struct(form).unpack_from

    def __call__(self, offset: int) -> int:
        number: int = self._unpack(self._raw, offset)[0]
        return number


def _is_possible(geometry: Geometry, size: int) -> bool:
    """Whether the numbers of a superblock can be those of a file system on a device of this size."""
    return (
        geometry.first_block < geometry.blocks <= size // geometry.block
        and 0 < geometry.blocks_per_group <= 8 * geometry.cluster * 8 * geometry.block
        and 0 < geometry.inodes_per_group <= 8 * geometry.block
        and geometry.inode_size in (128, 256, 512, 1024, 2048, 4096)
        and geometry.inode_size <= geometry.block
        and geometry.desc_size in (32, 64, 128, 256, 512, 1024)
        and geometry.cluster >= geometry.block
    )


def read_groups(geometry: Geometry, device: Device) -> Iterator[Group]:
    """All group descriptors, in order. `VolumeError` for one that points beyond the device."""
    per_block = geometry.block // geometry.desc_size
    for number in range(geometry.groups):
        block = _descriptor_block(geometry, number // per_block)
        offset = block * geometry.block + number % per_block * geometry.desc_size
        group = _parse_group(geometry, number, device.read(offset, geometry.desc_size))
        if max(group.block_bitmap, group.inode_bitmap, group.inode_table) >= geometry.blocks:
            raise VolumeError(
                f"read the group descriptors of {device.path}",
                f"group {number} points beyond the device",
                "unmount it and run e2fsck -f",
            )
        yield group


def _descriptor_block(geometry: Geometry, number: int) -> int:
    """The primary copy of the n-th block of descriptors (the kernel's descriptor_loc)."""
    if not _is_meta(geometry, number):
        return _SUPERBLOCK // geometry.block + number + 1
    group = number * (geometry.block // geometry.desc_size)
    above = int(geometry.has_super(group))
    if geometry.block == _SUPERBLOCK and number == 0 and geometry.first_block == 0:
        above += 1
    return geometry.first_block_of(group) + above


def _is_meta(geometry: Geometry, number: int) -> bool:
    return bool(geometry.incompat & _INCOMPAT_META_BG) and number >= geometry.first_meta_bg


def _parse_group(geometry: Geometry, number: int, raw: bytes) -> Group:
    u16, u32 = _Reader(raw, "<H"), _Reader(raw, "<I")
    high = geometry.desc_size >= 64
    unused, flags = u16(0x1C) | (u16(0x32) << 16 if high else 0), u16(0x12)
    used = geometry.inodes_per_group
    if not geometry.counts_used_inodes:
        flags = 0
    else:
        used = 0 if flags & INODE_UNINIT else max(used - unused, 0)
    return Group(
        number=number,
        block_bitmap=u32(0x0) | (u32(0x20) << 32 if high else 0),
        inode_bitmap=u32(0x4) | (u32(0x24) << 32 if high else 0),
        inode_table=u32(0x8) | (u32(0x28) << 32 if high else 0),
        flags=flags,
        used_inodes=used,
    )


def superblock_ranges(geometry: Geometry, *, reserved: bool = True) -> Iterator[Range]:
    """The copies of the superblock and of the descriptors, and what is `reserved` for more of those."""
    per_block = geometry.block // geometry.desc_size
    blocks = -(-geometry.groups // per_block)
    plain = min(blocks, geometry.first_meta_bg) if geometry.incompat & _INCOMPAT_META_BG else blocks
    # Boot sector and superblock; with blocks of 1 KiB these are two.
    yield Range(0, 2 * _SUPERBLOCK)
    for group in filter(geometry.has_super, range(geometry.groups)):
        start = geometry.first_block_of(group) if group else _SUPERBLOCK // geometry.block
        yield geometry.range_of(start, 1 + plain + (geometry.reserved_gdt if reserved else 0))
    for number in range(blocks) if geometry.incompat & _INCOMPAT_META_BG else ():
        if _is_meta(geometry, number):
            yield geometry.range_of(_descriptor_block(geometry, number))
            yield from _meta_copies(geometry, number * per_block, per_block)
    if geometry.mmp_block:
        yield geometry.range_of(geometry.mmp_block)


def _meta_copies(geometry: Geometry, first: int, per_block: int) -> Iterator[Range]:
    """The copies of a block of descriptors in the second and the last group that it describes."""
    for group in (first + 1, first + per_block - 1):
        if group < geometry.groups:
            yield geometry.range_of(geometry.first_block_of(group) + geometry.has_super(group))


def table_range(geometry: Geometry, group: Group) -> Range:
    """The whole inode table of a group."""
    start = group.inode_table * geometry.block
    size = geometry.inodes_per_group * geometry.inode_size
    return Range(start, start + -(-size // geometry.block) * geometry.block)


def used_table_range(geometry: Geometry, group: Group) -> Range:
    """The part of a group's inode table that was ever used."""
    start = group.inode_table * geometry.block
    return Range(start, start + group.used_inodes * geometry.inode_size)


def _is_power(number: int, base: int) -> bool:
    while number % base == 0:
        number //= base
    return number == 1
