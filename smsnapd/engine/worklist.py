"""What a restore has to write, spooled to disk and grouped by the chunk it lies in."""

from __future__ import annotations

import os
import tempfile
from array import array
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Final

from smsnapd.engine.selection import Selection
from smsnapd.engine.spool import Spool
from smsnapd.engine.writing import Item
from smsnapd.model import CHUNK_TARGET, Entry, Kind, Listing, data_bytes, join_path
from smsnapd.state import is_alias

INLINE_BYTES: Final = 8 * 1024 * 1024
INLINE_FILES: Final = 500
"""Up to this much is written by this process alone: starting others would take longer."""

ITEMS_PER_JOB: Final = 4000
NO_CHUNK: Final = 0xFFFFFFFF
"""Stands for the chunk of entries that have no content."""


class Worklist:
    """The entries of a restore, spooled to an unnamed file: memory holds a few bytes for each."""

    def __init__(self, selection: Selection) -> None:
        self._spool = Spool(Item, spool_directory())
        self._directories = array("Q")
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
        for entry in listing.entries:
            position = self._spool.add(Item(join_path(listing.directory, entry.name), entry))
            self.used_chunks.update(extent.chunk for extent in entry.content)
            if entry.kind == Kind.DIRECTORY:
                self._directories.append(position)
                continue
            if entry.kind == Kind.REGULAR:
                self.files += 1
                self.bytes += 0 if is_alias(entry) else entry.size
                self.data_bytes += 0 if is_alias(entry) else data_bytes(entry)
            if is_alias(entry):
                self._links.append(position)
            elif is_in_pieces(entry):
                self._large.append(position)
            else:
                self._small.append(position)
                self._chunks.append(entry.content[0].chunk if entry.content else NO_CHUNK)

    def directories(self) -> Iterator[Item]:
        """Directories, each before what lies in it."""
        return map(self._spool.at, self._directories)

    def directories_deepest_first(self) -> Iterator[Item]:
        """Directories, each behind all below it."""
        return map(self._spool.at, reversed(self._directories))

    def names(self) -> Iterator[tuple[bytes, set[bytes]]]:
        """Every directory and the names in it."""
        met: set[bytes] = set()
        for directory, items in groupby(self._spool, lambda item: item.path.rpartition(b"/")[0]):
            met.add(directory)
            yield directory, {item.path.rpartition(b"/")[2] for item in items if item.path}
        yield from ((item.path, set()) for item in self.directories() if item.path not in met)

    def links(self) -> Iterator[Item]:
        """Further names of inodes, each behind its first name."""
        return map(self._spool.at, self._links)

    def large(self) -> Iterator[Item]:
        """Files that lie in more than one chunk, or in one of their own."""
        return map(self._spool.at, self._large)

    def small_by_chunk(self) -> Iterator[tuple[int, list[Item]]]:
        """The other entries, by the chunk that has their content (NO_CHUNK: none)."""
        order = sorted(range(len(self._small)), key=self._chunks.__getitem__)
        items: list[Item] = []
        current = -1
        for index in order:
            chunk = self._chunks[index]
            if items and (chunk != current or len(items) >= ITEMS_PER_JOB):
                yield current, items
                items = []
            current = chunk
            items.append(self._spool.at(self._small[index]))
        if items:
            yield current, items

    @property
    def is_small(self) -> bool:
        """Whether one process does it soonest."""
        return self.bytes <= INLINE_BYTES and len(self._small) <= INLINE_FILES


def is_in_pieces(entry: Entry) -> bool:
    """Whether a regular file's content was cut into chunks of its own."""
    return entry.kind == Kind.REGULAR and (len(entry.content) > 1 or data_bytes(entry) >= CHUNK_TARGET)


def spool_directory() -> Path:
    """A place on disk for working files: /tmp may be memory."""
    return Path("/var/tmp" if os.access("/var/tmp", os.W_OK) else tempfile.gettempdir())
