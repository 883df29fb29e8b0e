"""Unsettled entries: stat shows no difference, but a write may have hidden behind it (invariant 3)."""

from __future__ import annotations

import msgspec

from smsnapd.disk import aligned_memory
from smsnapd.format.chunker import cut_ranges
from smsnapd.format.codec import CONTENT_LIMITS, ObjectType, chunk_hash
from smsnapd.model import CHUNK_TARGET, Entry, Flag, Kind, data_bytes, data_segments, join_path
from smsnapd.state import State, has_names, is_alias
from smsnapd.volume.tarball.read import PackItem, PackReader, ReadBuffer


class Rechecker:
    """Reads unsettled entries again and compares them with what was stored."""

    def __init__(self, reader: PackReader, state: State, names_key: bytes, unsettled_from_ns: int) -> None:
        self._reader = reader
        self._state = state
        self._names_key = names_key
        self._unsettled_from_ns = unsettled_from_ns
        self._buffer: ReadBuffer | None = None

    def settled(self, directory: bytes, scanned: Entry, indexed: Entry) -> Entry | None:
        """The indexed entry as it is to be kept, its mark gone if it is old enough; None if it differs."""
        if indexed.flags & Flag.CHANGED or indexed.header is None or self._is_split(indexed):
            # Without a header it was never stored: it lies in an image, which does not tell its contents.
            return None
        if not self._same(directory, scanned, indexed):
            return None
        flags = indexed.flags
        if indexed.ctime_ns < self._unsettled_from_ns:
            flags &= ~Flag.UNSETTLED
        return msgspec.structs.replace(indexed, flags=int(flags))

    def _is_split(self, indexed: Entry) -> bool:
        """Whether two names of one file are indexed as files of their own.

        One of them got its name during that run: when it was scanned, another file had it.
        """
        if not indexed.flags & Flag.UNSETTLED or not has_names(indexed) or is_alias(indexed):
            return False
        found = (self._state.entry(path) for path in self._state.names_of(indexed.inode))
        return sum(not is_alias(entry) for entry in found if entry and entry.inode == indexed.inode) > 1

    def _same(self, directory: bytes, scanned: Entry, indexed: Entry) -> bool:
        if is_alias(indexed):
            # What it is an alias of was read at another moment: it must not have changed in between.
            first = self._state.entry(indexed.target)
            return first is not None and (first.inode, first.ctime_ns) == (scanned.inode, scanned.ctime_ns)
        if indexed.kind == Kind.REGULAR and data_bytes(indexed) >= CHUNK_TARGET:
            return self._same_large(join_path(directory, scanned.name), scanned, indexed)
        _, (packed,) = self._reader.read_pack([PackItem(directory, scanned, indexed)], self._room())
        entry = packed.entry
        return (
            entry is not None
            and not packed.issue
            and entry.xattrs == indexed.xattrs
            and entry.target == indexed.target
            and entry.segments == indexed.segments
            and entry.content == indexed.content
        )

    def _room(self) -> ReadBuffer:
        if self._buffer is None:
            self._buffer = aligned_memory(CONTENT_LIMITS[ObjectType.CHUNK])
        return self._buffer

    def _same_large(self, path: bytes, scanned: Entry, indexed: Entry) -> bool:
        entry, issue = self._reader.inspect(path, scanned)
        if entry is None or issue or entry.xattrs != indexed.xattrs or entry.segments != indexed.segments:
            return False
        cuts = cut_ranges(entry.size, data_segments(entry))
        if len(cuts) != len(indexed.content):
            return False
        buffer = self._room()
        chunks = self._state.chunks_by_number({extent.chunk for extent in indexed.content})
        for (start, end), extent in zip(cuts, indexed.content, strict=True):
            used, issue = self._reader.read_range(path, entry, start, end, buffer)
            content = memoryview(buffer)[:used]
            if issue or chunk_hash(self._names_key, content) != chunks[extent.chunk].name_hash:
                return False
        return True
