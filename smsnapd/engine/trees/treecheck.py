"""Every tree of a chain held to the rules of trees, layer by layer: what one does not touch was good before.

The rules are those of FORMAT.md, section 8, "Folding". Held are directories and files with several names; to
fold each tree from the start would take the square of the time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Final

from smsnapd.errors import DamageError
from smsnapd.model import Entry, Flag, Kind, Listing, directory_key, join_path

_TOMBSTONE: Final = int(Kind.TOMBSTONE)
_DIRECTORY: Final = int(Kind.DIRECTORY)
_ALIAS: Final = int(Flag.ALIAS)
_ANEW: Final = int(Flag.ANEW)


class TreeCheck:
    """What matters of a tree as it was after the layers so far. `add` them in their order, the full first."""

    def __init__(self) -> None:
        self._directories: set[bytes] = set()
        self._below: defaultdict[bytes, set[bytes]] = defaultdict(set)
        """Of a directory those in it, and its files with several names."""
        self._firsts: set[bytes] = set()
        self._target: dict[bytes, bytes] = {}
        self._aliases: defaultdict[bytes, set[bytes]] = defaultdict(set)

    def add(self, layer: Iterable[Listing]) -> None:
        """The next layer, in catalog order; DamageError if the tree with it is none."""
        touched: set[bytes] = set()
        parents: set[bytes] = set()
        for directory, entries in layer:
            for entry in entries:
                path = join_path(directory, entry.name)
                touched.update(self._replace(path, entry))
                if entry.kind != _TOMBSTONE and path:
                    parents.add(directory)
        if b"" not in self._directories:
            raise DamageError("read the tree of the snapshot", "it has no root directory")
        self._check_parents(parents)
        self._check_aliases(touched)

    def _replace(self, path: bytes, entry: Entry) -> Iterator[bytes]:
        """Put an entry in the place of what was there; what aliases may name and has changed comes back."""
        if entry.kind == _DIRECTORY and path in self._directories and not entry.flags & _ANEW:
            return
        yield from self._remove(path)
        if entry.kind == _TOMBSTONE:
            return
        if entry.kind == _DIRECTORY:
            self._directories.add(path)
        elif entry.flags & _ALIAS:
            self._target[path] = entry.target
            self._aliases[entry.target].add(path)
            yield path
        elif entry.links > 1:
            self._firsts.add(path)
        else:
            return
        if path:
            self._below[path.rpartition(b"/")[0]].add(path)

    def _remove(self, path: bytes) -> Iterator[bytes]:
        """What is at a path, and all that is below it."""
        pending = [path]
        while pending:
            gone = pending.pop()
            if gone in self._directories:
                pending.extend(self._below.pop(gone, ()))
                self._directories.discard(gone)
            if gone in self._firsts:
                self._firsts.discard(gone)
                yield gone
            target = self._target.pop(gone, None)
            if target is not None:
                self._aliases[target].discard(gone)
        self._below.get(path.rpartition(b"/")[0], set()).discard(path)

    def _check_parents(self, parents: set[bytes]) -> None:
        if not parents <= self._directories:
            raise DamageError("read the tree of the snapshot", "an entry does not lie in a directory")

    def _check_aliases(self, touched: set[bytes]) -> None:
        """Those that were touched, or whose first names were."""
        for path in touched:
            named = [path] if path in self._target else []
            for alias in (*named, *self._aliases.get(path, ())):
                target = self._target[alias]
                if target not in self._firsts or not _is_before(target, alias):
                    why = "a further name of a file has no first name before it"
                    raise DamageError("read the tree of the snapshot", why)


def _is_before(path: bytes, other: bytes) -> bool:
    """In catalog order."""
    return _order(path) < _order(other)


def _order(path: bytes) -> tuple[bytes, bytes]:
    directory, _, name = path.rpartition(b"/")
    return directory_key(directory), name
