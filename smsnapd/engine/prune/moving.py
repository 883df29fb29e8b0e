"""What is live in chunks, and where it lies when they were written anew."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

import msgspec

from smsnapd.engine.chain.sparse import ChunkKey
from smsnapd.engine.trees.tree import SnapshotTree
from smsnapd.model import BLOCK, ChunkRef, Entry, Extent, Listing

LEAST_LIVE: Final = 0.8
"""A chunk of which less is live is written anew."""

SMALL_BYTES: Final = 512 * 1024
"""Chunks with less content are gathered, if there are a few."""

FEW: Final = 8


def key_of(ref: ChunkRef) -> ChunkKey:
    """What chunk this is."""
    return ref.name_hash, ref.key_id


class Live:
    """The blocks of each chunk that some entry names, a bit each: 2 KiB for a chunk of 8 MiB."""

    def __init__(self) -> None:
        self._blocks: dict[ChunkKey, int] = {}
        self.refs: dict[ChunkKey, ChunkRef] = {}

    def add(self, tree: SnapshotTree, listings: Iterable[Listing]) -> None:
        """All that these entries name."""
        keys = [key_of(ref) for ref in tree.chunks]
        for ref in tree.chunks:
            self.refs.setdefault(key_of(ref), ref)
        for listing in listings:
            for entry in listing.entries:
                if entry.header is not None:
                    for extent in (entry.header, *entry.content):
                        self._add(keys[extent.chunk], extent)

    def _add(self, key: ChunkKey, extent: Extent) -> None:
        bits = ((1 << extent.length // BLOCK) - 1) << extent.offset // BLOCK
        self._blocks[key] = self._blocks.get(key, 0) | bits

    def bytes_of(self, key: ChunkKey) -> int:
        """The live bytes of a chunk."""
        return self._blocks.get(key, 0).bit_count() * BLOCK

    @property
    def bytes(self) -> int:
        """All live bytes."""
        return sum(map(self.bytes_of, self._blocks))

    def runs(self, key: ChunkKey) -> Iterator[tuple[int, int]]:
        """The live stretches of a chunk, in order: where each begins and ends, in bytes.

        Every extent lies within one, for it is live itself.
        """
        blocks, at = self._blocks.get(key, 0), 0
        while blocks:
            zeros = (blocks & -blocks).bit_length() - 1
            blocks >>= zeros
            ones = (~blocks & (blocks + 1)).bit_length() - 1
            yield (at + zeros) * BLOCK, (at + zeros + ones) * BLOCK
            blocks >>= ones
            at += zeros + ones

    def to_rewrite(self, barred: set[ChunkKey]) -> list[ChunkKey]:
        """The chunks that are mostly dead, and the small ones if there are a few; none that is `barred`."""
        free = [key for key in self._blocks if key not in barred]
        sparse = [key for key in free if self.bytes_of(key) < LEAST_LIVE * self.refs[key].length]
        small = [key for key in free if self.refs[key].length < SMALL_BYTES]
        chosen = dict.fromkeys(sparse)
        if len(small) >= FEW:
            chosen |= dict.fromkeys(small)
        return list(chosen)


class Place(NamedTuple):
    """A stretch of a chunk, in bytes, and where it lies now: in which new chunk, from which byte on."""

    begin: int
    end: int
    chunk: int
    offset: int


class Moved:
    """Where what was in some chunks is now. `chunks` are the new ones; `rewrites` is the number of the
    replacement that is being made."""

    def __init__(self) -> None:
        self.rewrites = 0
        self.chunks: list[ChunkRef] = []
        self.places: dict[ChunkKey, list[Place]] = {}

    def applied(self, tree: SnapshotTree) -> Iterator[Listing]:
        """The entries of a tree with their new places; its chunks get the new ones, behind its own."""
        base = len(tree.chunks)
        found = {number: self.places.get(key_of(ref)) for number, ref in enumerate(tree.chunks)}
        places = {number: each for number, each in found.items() if each is not None}
        tree.chunks.extend(self.chunks)
        for listing in tree.merged():
            entries = [self._moved(entry, places, base) for entry in listing.entries]
            yield Listing(listing.directory, entries)

    def _moved(self, entry: Entry, places: dict[int, list[Place]], base: int) -> Entry:
        header = entry.header
        if header is None or not (
            header.chunk in places or any(extent.chunk in places for extent in entry.content)
        ):
            return entry
        return msgspec.structs.replace(
            entry,
            header=_place(header, places, base),
            content=tuple(_place(extent, places, base) for extent in entry.content),
        )


def _place(extent: Extent, places: dict[int, list[Place]], base: int) -> Extent:
    within = places.get(extent.chunk)
    if within is None:
        return extent
    place = within[bisect_right(within, extent.offset, key=lambda place: place.begin) - 1]
    return Extent(base + place.chunk, extent.offset - place.begin + place.offset, extent.length)
