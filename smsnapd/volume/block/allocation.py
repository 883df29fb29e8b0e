"""What ext4 has allocated, out of its block bitmaps."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

from smsnapd.volume.block.device import Device
from smsnapd.volume.block.ext4 import (
    BLOCK_UNINIT,
    Geometry,
    Group,
    Range,
    superblock_ranges,
    table_range,
    used_table_range,
)
from smsnapd.volume.block.masks import Masks

_RUN: Final = re.compile("1+")


def mark_allocated(geometry: Geometry, groups: Iterable[Group], device: Device, masks: Masks) -> None:
    """Add to `masks` all that is in use, but for the ends of inode tables that were never used.

    A bitmap that is not initialised (BLOCK_UNINIT) stands for a group with nothing but metadata, its own or
    other groups'.
    """
    for span in superblock_ranges(geometry):
        masks.add(span)
    for group in groups:
        if not group.flags & BLOCK_UNINIT:
            for span in _runs(geometry, group, device):
                masks.add(span)
        table = table_range(geometry, group)
        used = used_table_range(geometry, group)
        masks.remove(Range(used.end, table.end))
        for span in (*bitmap_ranges(geometry, group), used):
            masks.add(span)


def bitmap_ranges(geometry: Geometry, group: Group) -> tuple[Range, Range]:
    """A group's bitmaps, of blocks and of inodes."""
    return geometry.range_of(group.block_bitmap), geometry.range_of(group.inode_bitmap)


def _runs(geometry: Geometry, group: Group, device: Device) -> Iterator[Range]:
    """The stretches that a group's bitmap says are in use."""
    first = geometry.first_block_of(group.number)
    blocks = min(geometry.blocks_per_group, geometry.blocks - first)
    ratio = geometry.cluster // geometry.block
    count = -(-blocks // ratio)
    raw = device.read(group.block_bitmap * geometry.block, -(-count // 8))
    bits = format(int.from_bytes(raw, "little"), f"0{8 * len(raw)}b")[::-1]
    for run in _RUN.finditer(bits, 0, count):
        start, end = run.span()
        yield geometry.range_of(first + start * ratio, (end - start) * ratio)
