"""Entries with where their bytes lie, whatever snapshot they are of: what is compared, read and mounted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from msgspec.structs import replace

from smsnapd.engine.trees.tree import SnapshotTree
from smsnapd.errors import DamageError
from smsnapd.model import ChunkRef, Entry, Flag, Kind, Listing, directory_key, join_path

_ALIAS: Final = int(Flag.ALIAS)
_DIRECTORY: Final = int(Kind.DIRECTORY)


class Piece(NamedTuple):
    """A content extent and the chunk that it lies in."""

    ref: ChunkRef
    offset: int
    length: int


class Placed(NamedTuple):
    """An entry, and its content extents: None for a file as it lies on the volume.

    `first` is the first name of a file with several, which may be its own; else empty.
    """

    entry: Entry
    content: tuple[Piece, ...] | None = ()
    first: bytes = b""


class PlacedListing(NamedTuple):
    """As `Listing`."""

    directory: bytes
    entries: list[Placed]


def place(entry: Entry, chunks: Sequence[ChunkRef]) -> Placed:
    """An entry whose extents name rows of `chunks`."""
    return Placed(entry, tuple(Piece(chunks[chunk], start, length) for chunk, start, length in entry.content))


def same_places(one: Placed, other: Placed) -> bool:
    """Whether both have their bytes in the same places: then these are the same, extent by extent."""
    if one.content is None or other.content is None or len(one.content) != len(other.content):
        return False
    return all(
        (a.ref.name_hash, a.offset, a.length) == (b.ref.name_hash, b.offset, b.length)
        for a, b in zip(one.content, other.content, strict=True)
    )


class Names:
    """Files with several names, by their first one: what an alias stands for."""

    def __init__(self) -> None:
        self._firsts: dict[bytes, Placed] = {}

    def whole(self, path: bytes, placed: Placed) -> Placed:
        """`placed`, or if it is an alias, the file itself under that name. First names are to come before."""
        entry = placed.entry
        if entry.links <= 1 or entry.kind == _DIRECTORY:
            return placed
        if not entry.flags & _ALIAS:
            self._firsts[path] = placed._replace(first=path)
            return self._firsts[path]
        first = self._firsts.get(entry.target)
        if first is None:
            raise DamageError("read the tree", "a further name of a file has no first name before it")
        return first._replace(entry=replace(first.entry, name=entry.name, links=entry.links))


def placed_tree(tree: SnapshotTree) -> Iterator[PlacedListing]:
    """The tree of a recovery point with every entry in its place, aliases as the files that they are."""
    return placed_listings(tree.listings(), tree.chunks)


def placed_listings(listings: Iterable[Listing], chunks: Sequence[ChunkRef]) -> Iterator[PlacedListing]:
    """The same of any checked tree whose extents name rows of `chunks`."""
    names = Names()
    for directory, entries in listings:
        yield PlacedListing(
            directory,
            [names.whole(join_path(directory, entry.name), place(entry, chunks)) for entry in entries],
        )


def find_placed(tree: SnapshotTree, path: bytes) -> Placed | None:
    """What a tree has at `path`; None if nothing. Reads no further."""
    directory, _, name = path.rpartition(b"/")
    key = directory_key(directory)
    for listing in placed_tree(tree):
        if listing.directory == directory:
            found = next((placed for placed in listing.entries if placed.entry.name == name), None)
            if found is not None:
                return found
        elif directory_key(listing.directory) > key:
            break
    return None
