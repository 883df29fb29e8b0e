"""Where an inode's bytes lie: extent trees, the block maps of older files, blocks of attributes."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from smsnapd.volume.block.device import Device
from smsnapd.volume.block.ext4 import Geometry, Range
from smsnapd.volume.block.inodes import Inode

_EXTENTS_FLAG: Final = 0x80000
_INLINE_FLAG: Final = 0x10000000
_HEADER: Final = struct.Struct("<HHHH4x")  # magic, entries, most entries, depth, generation
_LEAF: Final = struct.Struct("<4xHHI")  # first logical block, length, high and low half of the first block
_INDEX: Final = struct.Struct("<4xIH2x")  # first logical block, low and high half of the block below
_MAGIC: Final = 0xF30A
_DEPTH_LIMIT: Final = 5
_UNWRITTEN: Final = 0x8000
_MAP: Final = struct.Struct("<15I")
_BLOCKS_AT, _MAP_SIZE = 0x28, 60
_DIRECT: Final = 12
_FORMAT: Final = 0xF000
_MAPPED: Final = (0x4000, 0x8000, 0xA000)
"""Directories, regular files and symbolic links have blocks; devices, FIFOs and sockets have not."""


class BlockFinder:
    """Finds blocks through a device. What makes no sense is passed over: it may be changing."""

    def __init__(self, geometry: Geometry, device: Device) -> None:
        self._geometry = geometry
        self._device = device

    def standing(self, inode: Inode) -> Iterator[Range]:
        """The blocks that may change though the inode does not: of attributes and the extent tree."""
        yield from self._attributes(inode)
        if self._form(inode) == _EXTENTS_FLAG:
            yield from self._tree(_root(inode), nodes=True, leaves=False)

    def content(self, inode: Inode) -> Iterator[Range]:
        """The blocks of what an inode contains, in order."""
        yield from self._found(inode, nodes=False)

    def all(self, inode: Inode) -> Iterator[Range]:
        """Every block of an inode."""
        yield from self._attributes(inode)
        yield from self._found(inode, nodes=True)

    def _found(self, inode: Inode, *, nodes: bool) -> Iterator[Range]:
        form = self._form(inode)
        if form == _EXTENTS_FLAG:
            yield from self._tree(_root(inode), nodes=nodes, leaves=True)
        elif form == 0:
            yield from _joined(self._mapped(inode, nodes=nodes))

    def _form(self, inode: Inode) -> int:
        """_EXTENTS_FLAG, 0 for a block map, or another number if it has no blocks."""
        (mode,) = struct.unpack_from("<H", inode.raw)
        (flags,) = struct.unpack_from("<I", inode.raw, 0x20)
        (size,) = struct.unpack_from("<I", inode.raw, 0x4)
        if mode & _FORMAT not in _MAPPED or flags & _INLINE_FLAG:
            return -1
        if flags & _EXTENTS_FLAG:
            return _EXTENTS_FLAG
        is_fast_link = mode & _FORMAT == 0xA000 and size < _MAP_SIZE
        return -1 if is_fast_link else 0

    def _attributes(self, inode: Inode) -> Iterator[Range]:
        (low,) = struct.unpack_from("<I", inode.raw, 0x68)
        (high,) = struct.unpack_from("<H", inode.raw, 0x76)
        yield from self._blocks(low | high << 32, 1)

    def _blocks(self, block: int, count: int) -> Iterator[Range]:
        if block > 0 and block + count <= self._geometry.blocks:
            yield self._geometry.range_of(block, count)

    def _read(self, block: int) -> bytes:
        if not 0 < block < self._geometry.blocks:
            return b""
        return self._device.read(block * self._geometry.block, self._geometry.block)

    def _tree(
        self, node: bytes, *, nodes: bool, leaves: bool, above: int = _DEPTH_LIMIT + 1
    ) -> Iterator[Range]:
        """What is below a node of an extent tree: the blocks of its `nodes`, the extents in its `leaves`."""
        depth = _depth(node)
        if not 0 <= depth < above:
            return
        if depth == 0:
            for length, high, low in _entries(node, _LEAF) if leaves else ():
                count = length if length <= _UNWRITTEN else length - _UNWRITTEN
                yield from self._blocks(low | high << 32, count)
            return
        for low, high in _entries(node, _INDEX):
            block = low | high << 32
            if nodes:
                yield from self._blocks(block, 1)
            if leaves or depth > 1:
                yield from self._tree(self._read(block), nodes=nodes, leaves=leaves, above=depth)

    def _mapped(self, inode: Inode, *, nodes: bool) -> Iterator[Range]:
        """The blocks of a file with a block map, and, with `nodes`, those of the map itself."""
        pointers = _MAP.unpack_from(inode.raw, _BLOCKS_AT)
        for block in pointers[:_DIRECT]:
            yield from self._blocks(block, 1)
        for depth, block in enumerate(pointers[_DIRECT:]):
            yield from self._indirect(block, depth, nodes=nodes)

    def _indirect(self, block: int, depth: int, *, nodes: bool) -> Iterator[Range]:
        raw = self._read(block)
        if raw and nodes:
            yield from self._blocks(block, 1)
        for (below,) in struct.iter_unpack("<I", raw):
            if not below:
                continue
            if depth:
                yield from self._indirect(below, depth - 1, nodes=nodes)
            else:
                yield from self._blocks(below, 1)


def _joined(spans: Iterator[Range]) -> Iterator[Range]:
    """The same bytes in the same order; those that follow on each other are one."""
    last: Range | None = None
    for span in spans:
        if last is not None and last.end == span.start:
            last = Range(last.start, span.end)
            continue
        if last is not None:
            yield last
        last = span
    if last is not None:
        yield last


def _root(inode: Inode) -> bytes:
    """The root of an inode's extent tree."""
    return inode.raw[_BLOCKS_AT : _BLOCKS_AT + _MAP_SIZE]


def _depth(node: bytes) -> int:
    """How many levels are below a node of an extent tree, -1 if it is none."""
    if len(node) < _HEADER.size:
        return -1
    magic, _, _, depth = _HEADER.unpack_from(node)
    return depth if magic == _MAGIC else -1


def _entries(node: bytes, form: struct.Struct) -> Iterator[tuple[int, ...]]:
    _, count, _, _ = _HEADER.unpack_from(node)
    for number in range(min(count, len(node) // _HEADER.size - 1)):
        yield form.unpack_from(node, _HEADER.size * (number + 1))
