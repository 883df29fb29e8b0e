"""What a restore has to write, spooled to disk and grouped by the chunk it lies in."""

from __future__ import annotations

import os
import tempfile
from array import array
from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from pathlib import Path
from typing import Final

import msgspec

from smsnapd.engine.restore.writing import Item
from smsnapd.engine.spool import Spool
from smsnapd.engine.trees.selection import Selection
from smsnapd.model import CHUNK_TARGET, Entry, Flag, Kind, Listing, data_bytes

INLINE_BYTES: Final = 8 * 1024 * 1024
INLINE_FILES: Final = 500
"""Up to this much is written by this process alone: starting others would take longer."""

ITEMS_PER_JOB: Final = 4000
LINKS_PER_JOB: Final = 500
DIRECTORIES_PER_JOB: Final = 250
NO_CHUNK: Final = 0xFFFFFFFF
"""Stands for the chunk of entries that have no content."""

_REGULAR: Final = int(Kind.REGULAR)
_DIRECTORY: Final = int(Kind.DIRECTORY)
_ALIAS: Final = int(Flag.ALIAS)


class Worklist:
    """The entries of a restore, spooled to an unnamed file: memory holds a few bytes for each."""

    def __init__(self, selection: Selection) -> None:
        self._spool = Spool(Item, spool_directory())
        self._directories = array("Q")
        self._depths = array("L")
        self._links = array("Q")
        self._large = array("Q")
        self._small = array("Q")
        self._chunks = array("L")
        self.used_chunks: set[int] = set()
        self.files = 0
        self.bytes = 0
        self.data_bytes = 0
        try:
            for listing in selection.listings():
                self._add_listing(listing)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Drop the spool."""
        self._spool.close()

    def _add_listing(self, listing: Listing) -> None:
        directory, entries = listing
        above = directory + b"/" if directory else b""
        depth = above.count(b"/")
        places = self._spool.add_all([Item(above + entry.name, entry) for entry in entries])
        self.used_chunks.update([extent[0] for entry in entries for extent in entry.content])
        self._count([entry for entry in entries if entry.kind == _REGULAR])
        for place, entry in zip(places, entries, strict=True):
            if entry.kind == _DIRECTORY:
                self._directories.append(place)
                self._depths.append(depth + 1 if entry.name else 0)
            elif entry.flags & _ALIAS:
                self._links.append(place)
            elif is_in_pieces(entry):
                self._large.append(place)
            else:
                self._small.append(place)
                self._chunks.append(entry.content[0].chunk if entry.content else NO_CHUNK)

    def _count(self, files: list[Entry]) -> None:
        self.files += len(files)
        self.bytes += sum([entry.size for entry in files if not entry.flags & _ALIAS])
        self.data_bytes += sum([data_bytes(entry) for entry in files if not entry.flags & _ALIAS])

    def directories(self) -> Iterator[Item]:
        """Directories, each before what lies in it."""
        return map(self._spool.at, self._directories)

    def directories_by_depth(self, *, deepest_first: bool = False) -> Iterator[Iterator[msgspec.Raw]]:
        """Directories that lie equally deep, the root first or last: none of these lies in another."""
        order = sorted(range(len(self._depths)), key=self._depths.__getitem__, reverse=deepest_first)
        for _, level in groupby(order, self._depths.__getitem__):
            yield self._packed((self._directories[index] for index in level), DIRECTORIES_PER_JOB)

    def names(self) -> Iterator[tuple[bytes, set[bytes]]]:
        """Every directory and the names in it."""
        met: set[bytes] = set()
        for directory, items in groupby(self._spool, lambda item: item.path.rpartition(b"/")[0]):
            met.add(directory)
            yield directory, {item.path.rpartition(b"/")[2] for item in items if item.path}
        yield from ((item.path, set()) for item in self.directories() if item.path not in met)

    def links(self) -> Iterator[msgspec.Raw]:
        """Further names of inodes."""
        return self._packed(self._links, LINKS_PER_JOB)

    def large(self) -> Iterator[Item]:
        """Files that lie in more than one chunk, or in one of their own."""
        return map(self._spool.at, self._large)

    def small_by_chunk(self) -> Iterator[tuple[int, msgspec.Raw]]:
        """The other entries, by the chunk that has their content (NO_CHUNK: none)."""
        order = sorted(range(len(self._small)), key=self._chunks.__getitem__)
        for chunk, indices in groupby(order, self._chunks.__getitem__):
            for packed in self._packed((self._small[index] for index in indices), ITEMS_PER_JOB):
                yield chunk, packed

    def _packed(self, places: Iterable[int], at_once: int) -> Iterator[msgspec.Raw]:
        """Items, some at a time, as `unpack` takes them."""
        source = iter(places)
        while some := list(islice(source, at_once)):
            yield self._spool.packed(some)

    @property
    def is_small(self) -> bool:
        """Whether one process does it soonest."""
        return self.bytes <= INLINE_BYTES and len(self._small) <= INLINE_FILES


def is_in_pieces(entry: Entry) -> bool:
    """Whether a regular file's content was cut into chunks of its own."""
    return entry.kind == _REGULAR and (len(entry.content) > 1 or data_bytes(entry) >= CHUNK_TARGET)


def spool_directory() -> Path:
    """A place on disk for working files: /tmp may be memory."""
    return Path("/var/tmp" if os.access("/var/tmp", os.W_OK) else tempfile.gettempdir())
