"""Any bytes of any stored file, by offset: the chunks that they lie in are fetched, the last ones held."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from itertools import islice
from typing import Final, NamedTuple

from smsnapd.engine.trees.placed import Placed
from smsnapd.engine.trees.tree import chunk_names_keys
from smsnapd.format.chunker import split_segments
from smsnapd.model import ChunkRef, data_segments
from smsnapd.repository import Repository
from smsnapd.repository.contents import ChunkOpener, Fetcher

HELD_BYTES: Final = 64 * 1024 * 1024
"""Opened chunks are kept up to so much, and one in any case."""

WINDOW_BYTES: Final = 1024 * 1024


class Stretch(NamedTuple):
    """Bytes of a file that lie in one chunk: offset in the file, length, and where in which chunk."""

    offset: int
    length: int
    ref: ChunkRef
    start: int


class StoredFile:
    """A regular file as its stretches, so that any offset is found at once."""

    def __init__(self, placed: Placed) -> None:
        self.size = placed.entry.size
        pieces = placed.content or ()
        parts = split_segments(data_segments(placed.entry), (piece.length for piece in pieces))
        self._stretches: list[Stretch] = []
        for piece, held in zip(pieces, parts, strict=True):
            start = piece.offset
            for offset, length in held:
                self._stretches.append(Stretch(offset, length, piece.ref, start))
                start += length
        self._offsets = [stretch.offset for stretch in self._stretches]

    def between(self, begin: int, end: int) -> Iterator[Stretch]:
        """What lies between two offsets, cut to them."""
        first = max(0, bisect_right(self._offsets, begin) - 1)
        for offset, length, ref, start in islice(self._stretches, first, None):
            if offset >= end:
                return
            skipped, stop = max(0, begin - offset), min(end, offset + length)
            if offset + skipped < stop:
                yield Stretch(offset + skipped, stop - offset - skipped, ref, start + skipped)

    def places(self, begin: int, end: int) -> list[tuple[int, int, bytes, int]]:
        """Where the bytes between two offsets lie; equal places have equal bytes."""
        return [(at, length, ref.name_hash, start) for at, length, ref, start in self.between(begin, end)]


class Contents:
    """Reads files of one volume. Needs the identity. Not for several threads."""

    def __init__(self, repository: Repository, volume: str, held_bytes: int = HELD_BYTES) -> None:
        self._repository = repository
        self._volume = volume
        self._keys: dict[bytes, bytes] = {}
        self._fetcher = Fetcher(repository.store, volume)
        names_keys = chunk_names_keys(repository, volume)
        self._opener = ChunkOpener(self._fetcher, repository.id, volume, self._keys, names_keys)
        self._held: OrderedDict[tuple[bytes, bytes], bytes] = OrderedDict()
        self._held_bytes = 0
        self._limit = held_bytes

    @property
    def fetched_bytes(self) -> int:
        """Sealed bytes that were fetched so far."""
        return self._fetcher.fetched_bytes

    def read(self, file: StoredFile, offset: int, size: int) -> bytearray:
        """At most `size` bytes from `offset`, holes as zeros; less at the end of the file only.

        DamageError if the repository cannot give them.
        """
        end = min(offset + size, file.size)
        out = bytearray(max(0, end - offset))
        for begin, length, ref, start in file.between(offset, end):
            out[begin - offset : begin - offset + length] = self._chunk(ref)[start : start + length]
        return out

    def windows(self, placed: Placed) -> Iterator[bytearray]:
        """All of a file, from its start, in stretches of at most `WINDOW_BYTES`."""
        file = StoredFile(placed)
        for offset in range(0, file.size, WINDOW_BYTES):
            yield self.read(file, offset, WINDOW_BYTES)

    def have_same_bytes(self, one: Placed, other: Placed) -> bool:
        """Whether two files of one size have the same bytes; reads only what lies in different places."""
        first, second = StoredFile(one), StoredFile(other)
        for begin in range(0, first.size, WINDOW_BYTES):
            end = begin + WINDOW_BYTES
            if first.places(begin, end) != second.places(begin, end) and (
                self.read(first, begin, WINDOW_BYTES) != self.read(second, begin, WINDOW_BYTES)
            ):
                return False
        return True

    def _chunk(self, ref: ChunkRef) -> memoryview:
        name = ref.name_hash, ref.key_id
        content = self._held.get(name)
        if content is None:
            if ref.key_id not in self._keys:
                self._keys[ref.key_id] = bytes(self._repository.data_key(self._volume, ref.key_id).secret)
            content = self._held[name] = self._opener.open(ref)
            self._held_bytes += len(content)
            self._drop()
        self._held.move_to_end(name)
        return memoryview(content)

    def _drop(self) -> None:
        while self._held_bytes > self._limit and len(self._held) > 1:
            _, dropped = self._held.popitem(last=False)
            self._held_bytes -= len(dropped)
