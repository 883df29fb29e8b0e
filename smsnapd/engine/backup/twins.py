"""Files that are probably copies of what this run has stored: environments are copied, and data sets are.

Only a guess, by name and size; whoever reads the file compares digests before its content is shared.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from smsnapd.model import CHUNK_TARGET, Entry, Extent, Kind

SMALLEST: Final = 8192
"""Bytes from which on a content is shared: for less, another chunk to fetch costs more than it saves."""

MOST: Final = 1 << 16
"""Files that are remembered, if there are so many: at least these, at most twice as many, 200 bytes each."""

_REGULAR: Final = int(Kind.REGULAR)
_PLACE: Final = Struct("<QII16s")


class Twins:
    """What was stored lately, by name and size."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._places: dict[int, bytes] = {}
        self._before: dict[int, bytes] = {}

    def note(self, entry: Entry) -> None:
        """Remember an entry that is stored, its extents final, if others may share its content."""
        size, content, digest = entry.size, entry.content, entry.digest
        if size < SMALLEST or len(content) != 1 or not digest or entry.segments or entry.kind != _REGULAR:
            return
        if len(self._places) >= self._most:
            self._before, self._places = self._places, {}
        self._places[hash((entry.name, size))] = _PLACE.pack(*content[0], digest)

    def find(self, scanned: Entry) -> Entry | None:
        """An entry that may have the content of a scanned one; only its content and digest mean something."""
        size = scanned.size
        if size < SMALLEST or size >= CHUNK_TARGET or scanned.kind != _REGULAR:
            return None
        key = hash((scanned.name, size))  # of two with the same one the digest tells
        place = self._places.get(key) or self._before.get(key)
        if place is None:
            return None
        chunk, offset, length, digest = _PLACE.unpack(place)
        content = (Extent(chunk, offset, length),)
        return Entry(scanned.name, _REGULAR, size=size, content=content, digest=digest)
