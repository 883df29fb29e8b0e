"""Trees out of catalogs: layers folded into one tree, and the tree checked (FORMAT.md, section 8, "Folding").

Incrementals alone are merged into one layer, which does to any tree below what they do one after the other.

Everything here is a stream of listings in catalog order. What is held at a time is the current listing of
each layer, and what the directories above it have that matters for those below.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from heapq import heapify, heappop, heappush
from itertools import islice
from operator import attrgetter, lt
from typing import Final, Generic, TypeVar

import msgspec

from smsnapd.engine.trees.selection import Selection, select
from smsnapd.errors import DamageError
from smsnapd.format.catalog import Order
from smsnapd.model import Entry, Flag, Kind, Listing, directory_key, join_path

__all__ = ["Selection", "checked", "find_entry", "fold", "merge", "select"]

_TOMBSTONE: Final = int(Kind.TOMBSTONE)
_DIRECTORY: Final = int(Kind.DIRECTORY)
_ALIAS: Final = int(Flag.ALIAS)
_ANEW: Final = int(Flag.ANEW)
_NAME: Final = attrgetter("name")
_READ: Final = "read the tree of the snapshot"

_T = TypeVar("_T")


def fold(layers: Sequence[Iterable[Listing]]) -> Iterator[Listing]:
    """The tree that `layers` make, oldest (the full) first: the newest entry of each path, no tombstones.

    Each layer is a stream of listings in catalog order, read once and lazily. A directory that one layer
    alone has passes through uncopied; one that several have may come in more listings than it had.
    """
    for listing in _folded([_Layer(number, stream) for number, stream in enumerate(layers)]):
        kinds = [0 if entry.flags & _ANEW else entry.kind for entry in listing.entries]
        if 0 not in kinds:
            yield listing
        elif alive := [_unmarked(entry) for entry in listing.entries if entry.kind]:
            yield Listing(listing.directory, alive)


def merge(layers: Sequence[Iterable[Listing]]) -> Iterator[Listing]:
    """The one layer that does what `layers`, oldest first, do: the newest entry of each path.

    None of them is a full. Tombstones stay, those too of what the layers themselves brought: so the layer may
    lie over a tree that has some of them already. A directory that took the place of something else, at any
    time in them, is marked `Flag.ANEW`.
    """
    # Numbered from 1: what is below them all is not known, and so has to be removed by name or by mark.
    return _folded([_Layer(number, stream) for number, stream in enumerate(layers, 1)])


def _folded(layers: list[_Layer]) -> Iterator[Listing]:
    """As `merge`; layer 0 is a full, for which nothing is removed below it."""
    heap = [(layer.key, layer.number, layer) for layer in layers if layer.listing is not None]
    heapify(heap)
    ancestors: _Ancestors[tuple[int, dict[bytes, int]]] = _Ancestors()
    while heap:
        key, _, layer = heappop(heap)
        group = [layer]
        while heap and heap[0][0] == key:
            group.append(heappop(heap)[2])
        yield from _directory(key, group, ancestors)
        for layer in group:
            if layer.listing is not None:
                heappush(heap, (layer.key, layer.number, layer))


def checked(listings: Iterable[Listing]) -> Iterator[Listing]:
    """`listings`, held to what a tree must be; raises `DamageError` at the first listing that is wrong.

    Paths rise; the root comes first; every other entry lies in a directory; none is a tombstone; an
    alias names an earlier file. Holds the paths of all files that have several names.
    """
    order = Order(_READ)
    directories: _Ancestors[set[bytes]] = _Ancestors()
    first_names: set[bytes] = set()
    current: bytes | None = None
    inside: set[bytes] = set()
    for listing in listings:
        order.check(listing)
        names = [entry.name for entry in listing.entries]
        if not all(map(lt, names, islice(names, 1, None))):
            raise DamageError(_READ, "its entries are not in order")
        key = directory_key(listing.directory)
        if current is None:
            _check_root(listing)
        elif key != current:
            _check_parent(key, directories)
        if key != current:
            current, inside = key, set()
        # Of most entries nothing more is to be known; the others are few.
        inside.update(_check_entries(listing, first_names))
        if inside and directories.innermost() is not inside:
            directories.enter(key, inside)
        yield listing
    if current is None:
        raise DamageError(_READ, "it has no entries")


def without_lost_aliases(listings: Iterable[Listing]) -> Iterator[Listing]:
    """`listings`, but for further names of files that no first name before them is of.

    A live image may hold a name that was taken away while it was read. When the names of a file change, all
    of them are recorded again: so one that was left behind as another's is one that is gone.
    """
    first_names: dict[bytes, int] = {}
    for listing in listings:
        lost: set[bytes] = set()
        for entry in [entry for entry in listing.entries if entry.links > 1 or entry.flags & _ALIAS]:
            if not entry.flags & _ALIAS:
                first_names[join_path(listing.directory, entry.name)] = entry.inode
            elif first_names.get(entry.target) != entry.inode:
                lost.add(entry.name)
        kept = [entry for entry in listing.entries if entry.name not in lost] if lost else listing.entries
        if kept:
            yield Listing(listing.directory, kept)


def find_entry(listings: Iterable[Listing], path: bytes) -> Entry | None:
    """The entry of `path` in a stream in catalog order, None if there is none. Reads no further."""
    directory, _, name = path.rpartition(b"/")
    key = directory_key(directory)
    for listing in listings:
        if listing.directory == directory:
            for entry in listing.entries:
                if entry.name == name:
                    return entry
        elif directory_key(listing.directory) > key:
            break
    return None


class _Ancestors(Generic[_T]):
    """What is known of the directories above the current one, in a stream in catalog order."""

    def __init__(self) -> None:
        self._frames: list[tuple[bytes, _T]] = []

    def enter(self, key: bytes, known: _T) -> None:
        """The stream is at the directory of `key`, and `known` is known of it."""
        self._frames.append((key, known))

    def innermost(self) -> _T | None:
        """What was entered last and not left."""
        return self._frames[-1][1] if self._frames else None

    def above(self, key: bytes) -> tuple[bytes, _T] | None:
        """The nearest directory above that of `key` that was entered; leaves all that `key` is not below."""
        while self._frames:
            frame = self._frames[-1]
            if not frame[0] or key.startswith(frame[0] + b"\0"):
                return frame
            self._frames.pop()
        return None


class _Layer:
    """One catalog's stream: the listing that it is at, or what is left of it; None at the end."""

    __slots__ = ("_stream", "key", "listing", "number")

    def __init__(self, number: int, stream: Iterable[Listing]) -> None:
        self.number = number
        self._stream = iter(stream)
        self.key = b""
        self.listing: Listing | None = None
        self.advance()

    def advance(self) -> None:
        """Go on to the next listing that is not empty."""
        self.listing = next((listing for listing in self._stream if listing.entries), None)
        if self.listing is not None:
            self.key = directory_key(self.listing.directory)

    def at(self, key: bytes) -> Listing | None:
        """The current listing if it is one of the directory of `key`."""
        return self.listing if self.key == key else None

    def take(self, name: bytes) -> list[Entry]:
        """The entries up to `name` of the current listing, which loses them."""
        if self.listing is None:
            return []
        directory, entries = self.listing
        count = bisect_right(entries, name, key=_NAME)
        if count == len(entries):
            self.advance()
        else:
            self.listing = Listing(directory, entries[count:])
        return entries[:count]


def _directory(
    key: bytes, group: list[_Layer], ancestors: _Ancestors[tuple[int, dict[bytes, int]]]
) -> Iterator[Listing]:
    """The folded entries of the directory of `key`, in which all layers of `group`, oldest first, are.

    Moves them all on. What removes the subtrees of lower layers is noted in `ancestors`: of a name the
    newest layer in which it is no directory.
    """
    level = _level(key, ancestors)
    cuts: dict[bytes, int] = {}
    for layer in group:
        while layer.number < level and layer.at(key):
            layer.advance()
    group = [layer for layer in group if layer.at(key)]
    while len(group) > 1:
        yield from _window(group, cuts)
        group = [layer for layer in group if layer.at(key)]
    for layer in group:
        while listing := layer.at(key):
            layer.advance()
            if layer.number:
                _note_cuts(listing.entries, layer.number, cuts)
            yield listing
    if cuts:
        ancestors.enter(key, (level, cuts))


def _level(key: bytes, ancestors: _Ancestors[tuple[int, dict[bytes, int]]]) -> int:
    """The oldest layer whose entries in the directory of `key` no newer layer has removed."""
    above = ancestors.above(key)
    if above is None:
        return 0
    parent, (level, cuts) = above
    start = len(parent) + 1 if parent else 0
    return max(level, cuts.get(key[start:].partition(b"\0")[0], 0))


def _window(group: list[_Layer], cuts: dict[bytes, int]) -> Iterator[Listing]:
    """The entries up to the first name at which one of the layers needs its next listing."""
    listings = [layer.listing for layer in group if layer.listing is not None]
    directory = listings[0].directory
    bound = min(listing.entries[-1].name for listing in listings)
    newest: dict[bytes, Entry] = {}
    for layer in group:
        entries = layer.take(bound)
        newest.update({entry.name: entry for entry in entries})
        if layer.number:
            _note_cuts(entries, layer.number, cuts)
    for name in cuts.keys() & newest.keys():
        if newest[name].kind == _DIRECTORY:
            newest[name] = _marked(newest[name])
    yield Listing(directory, sorted(newest.values(), key=_NAME))


def _note_cuts(entries: list[Entry], number: int, cuts: dict[bytes, int]) -> None:
    cuts.update({e.name: number for e in entries if e.kind != _DIRECTORY or e.flags & _ANEW})


def _marked(directory: Entry) -> Entry:
    return msgspec.structs.replace(directory, flags=directory.flags | _ANEW)


def _unmarked(entry: Entry) -> Entry:
    return msgspec.structs.replace(entry, flags=entry.flags & ~_ANEW) if entry.flags & _ANEW else entry


def _check_root(listing: Listing) -> None:
    root = listing.entries[0]
    if listing.directory or root.name or root.kind != _DIRECTORY:
        raise DamageError(_READ, "it has no root directory")


def _check_parent(key: bytes, directories: _Ancestors[set[bytes]]) -> None:
    parent, _, name = key.rpartition(b"\0")
    above = directories.above(key)
    if above is None or above[0] != parent or name not in above[1]:
        raise DamageError(_READ, "an entry does not lie in a directory")


def _check_entries(listing: Listing, first_names: set[bytes]) -> list[bytes]:
    """Check the aliases and kinds of a listing; returns the names of its directories."""
    directories: list[bytes] = []
    for entry in [e for e in listing.entries if e.links > 1 or e.kind == 2 or not e.kind or e.flags & 1]:
        if entry.kind == _DIRECTORY:
            directories.append(entry.name)
        elif entry.kind == _TOMBSTONE:
            raise DamageError(_READ, "it holds a deletion")
        elif not entry.flags & _ALIAS:
            first_names.add(join_path(listing.directory, entry.name))
        elif entry.target not in first_names:
            raise DamageError(_READ, "a further name of a file has no first name before it")
    return directories
