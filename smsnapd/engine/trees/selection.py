"""A tree cut down to some of its paths: these, all that is below them, and the directories above them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from smsnapd.errors import DamageError
from smsnapd.model import Entry, Flag, Listing, join_path

_ALIAS: Final = int(Flag.ALIAS)


@dataclass(frozen=True)
class Selection:
    """What was selected: `listings` opens the stream of it, `missing` are given paths that are not there."""

    listings: Callable[[], Iterator[Listing]]
    missing: tuple[bytes, ...]


def select(open_stream: Callable[[], Iterator[Listing]], paths: Sequence[bytes]) -> Selection:
    """Only `paths` of a checked tree, and all that is below them, and their parent directories.

    No paths, or the root, are the whole tree. `open_stream` gives the tree's listings, each time from
    the first; one reading is done before this returns, unless the whole tree is selected. Where the
    first name of a file is not selected, the first selected alias takes its place: the entry of the
    first name, but with the alias's name and no header, for the stored one has the other name. Of
    the tree, only such entries are held.
    """
    if set(paths) <= {b""}:
        return Selection(open_stream, ())
    survey = _Survey(paths)
    for listing in open_stream():
        survey.see(listing)
    chosen, firsts = _Chosen(paths), survey.firsts
    return Selection(lambda: _promoted(open_stream(), chosen, firsts), survey.missing())


class _Chosen:
    """Which entries are selected."""

    def __init__(self, paths: Iterable[bytes]) -> None:
        self._paths = set(paths)
        self._latest: bytes | None = None
        self._above = _by_directory(path for given in self._paths for path in _lineage(given))

    def entries(self, listing: Listing) -> list[Entry]:
        """The selected entries of a listing; its own list if it is all of them."""
        if self.covers(listing.directory):
            return listing.entries
        names = self._above.get(listing.directory)
        return [entry for entry in listing.entries if entry.name in names] if names else []

    def covers(self, path: bytes) -> bool:
        """Whether `path` is among the given paths or below one of them."""
        if self._latest is not None and path.startswith(self._latest + b"/"):
            return True
        found = next((above for above in _lineage(path) if above in self._paths), None)
        if found:
            self._latest = found
        return found is not None


class _Survey:
    """What a first reading of the tree finds out: paths that it has, first names that are not selected."""

    def __init__(self, paths: Sequence[bytes]) -> None:
        self._chosen = _Chosen(paths)
        self._paths = paths
        self._given = _by_directory(paths)
        self._seen: set[bytes] = set()
        self.firsts: set[bytes] = set()

    def see(self, listing: Listing) -> None:
        """Take note of one listing."""
        names = self._given.get(listing.directory)
        if names:
            found = [entry.name for entry in listing.entries if entry.name in names]
            self._seen.update(join_path(listing.directory, name) for name in found)
        for entry in self._chosen.entries(listing):
            if entry.flags & _ALIAS and not self._chosen.covers(entry.target):
                self.firsts.add(entry.target)

    def missing(self) -> tuple[bytes, ...]:
        """The given paths that were not seen."""
        return tuple(path for path in self._paths if path not in self._seen)


def _promoted(listings: Iterable[Listing], chosen: _Chosen, firsts: set[bytes]) -> Iterator[Listing]:
    """The selected entries; `firsts` are the first names that are not selected but whose aliases are."""
    wanted = _by_directory(firsts)
    donors: dict[bytes, Entry] = {}
    places: dict[bytes, bytes] = {}
    for directory, entries in listings:
        names = wanted.get(directory)
        if names:
            donors.update({join_path(directory, e.name): e for e in entries if e.name in names})
        kept = chosen.entries(Listing(directory, entries))
        if firsts and any(entry.target in firsts for entry in kept if entry.flags & _ALIAS):
            kept = [_in_place(directory, entry, donors, places, firsts) for entry in kept]
        if kept:
            yield Listing(directory, kept)


def _in_place(
    directory: bytes, entry: Entry, donors: dict[bytes, Entry], places: dict[bytes, bytes], firsts: set[bytes]
) -> Entry:
    """`entry`, or if the name that it is an alias of is not selected, the file itself or an alias of that."""
    if not entry.flags & _ALIAS or entry.target not in firsts:
        return entry
    if entry.target in places:
        return msgspec.structs.replace(entry, target=places[entry.target])
    if entry.target not in donors:
        raise DamageError("select from the tree", "a further name of a file has no first name before it")
    places[entry.target] = join_path(directory, entry.name)
    return msgspec.structs.replace(donors.pop(entry.target), name=entry.name, header=None)


def _lineage(path: bytes) -> Iterator[bytes]:
    """The root, every directory above `path`, and `path`."""
    yield b""
    position = path.find(b"/")
    while position >= 0:
        yield path[:position]
        position = path.find(b"/", position + 1)
    if path:
        yield path


def _by_directory(paths: Iterable[bytes]) -> dict[bytes, set[bytes]]:
    """The names of `paths`, by the directory that they lie in."""
    names: dict[bytes, set[bytes]] = {}
    for path in paths:
        directory, _, name = path.rpartition(b"/")
        names.setdefault(directory, set()).add(name)
    return names
