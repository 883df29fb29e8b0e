"""A recovery point's whole tree, spooled to an unnamed file and looked up by path."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import OrderedDict
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from smsnapd.engine.spool import Spool
from smsnapd.engine.trees.placed import Placed, place
from smsnapd.engine.trees.tree import SnapshotTree
from smsnapd.errors import DamageError
from smsnapd.model import Entry, Flag, Listing, directory_key

PIECE_ENTRIES: Final = 1000
"""Entries of a piece of a listing: what one look decodes, at most."""

HELD_ENTRIES: Final = 20_000
_ALIAS: Final = int(Flag.ALIAS)

Key = tuple[bytes, bytes]
"""A directory's key and a name in it: where a piece begins."""


class TreeIndex:
    """Reads the tree when it is made. Memory holds a key for each piece, and the pieces used last. Close it.

    DamageError if the chain's catalogs are not whole. Not for several threads.
    """

    def __init__(self, tree: SnapshotTree, directory: Path) -> None:
        """`directory` is where the unnamed file goes: one on disk."""
        self._chunks = tree.chunks
        self._spool = Spool(Listing, directory)
        self._keys: list[Key] = []
        self._places = array("Q")
        self._held: OrderedDict[int, list[Entry]] = OrderedDict()
        self._held_entries = 0
        try:
            for listing in tree.listings():
                self._add(listing)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Drop the file."""
        self._spool.close()

    def _add(self, listing: Listing) -> None:
        directory, entries = listing
        key = directory_key(directory)
        for start in range(0, len(entries), PIECE_ENTRIES):
            piece = entries[start : start + PIECE_ENTRIES]
            self._keys.append((key, piece[0].name))
            self._places.append(self._spool.add(Listing(directory, piece)))

    def find(self, path: bytes) -> Placed | None:
        """What is at a path, an alias as the file that it is; None if nothing is."""
        entry = self._entry(path)
        if entry is None:
            return None
        if not entry.flags & _ALIAS:
            return place(entry, self._chunks)
        first = self._entry(entry.target)
        if first is None:  # a tree in which that is so was refused
            raise DamageError("read the tree", "a further name of a file has no first name")
        return place(replace(first, name=entry.name), self._chunks)

    def entries(self, directory: bytes) -> list[Entry]:
        """What lies in a directory, aliases as such; nothing if it is none."""
        key = directory_key(directory)
        found: list[Entry] = []
        for number in range(max(0, bisect_right(self._keys, (key, b"")) - 1), len(self._keys)):
            if self._keys[number][0] > key:
                break
            if self._keys[number][0] == key:
                found += self._piece(number)
        return [entry for entry in found if entry.name]

    def _entry(self, path: bytes) -> Entry | None:
        directory, _, name = path.rpartition(b"/")
        key = directory_key(directory)
        number = bisect_right(self._keys, (key, name)) - 1
        if number < 0 or self._keys[number][0] != key:
            return None
        return next((entry for entry in self._piece(number) if entry.name == name), None)

    def _piece(self, number: int) -> list[Entry]:
        piece = self._held.get(number)
        if piece is None:
            piece = self._held[number] = self._spool.at(self._places[number]).entries
            self._held_entries += len(piece)
            while self._held_entries > HELD_ENTRIES:
                self._held_entries -= len(self._held.popitem(last=False)[1])
        else:
            self._held.move_to_end(number)
        return piece
