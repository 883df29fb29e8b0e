"""Every version of some files over a whole history, in one pass over its catalogs in the order of time.

Nothing is folded but, where a span of time is asked for, the tree at its beginning. What is held is one
segment, and what is known of the files that were asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from msgspec.structs import replace

from smsnapd.engine.history import Damaged, History, check_link
from smsnapd.engine.lookback.sameness import Judge, differences
from smsnapd.engine.trees.placed import Names, Placed, place
from smsnapd.engine.trees.tree import SnapshotTree
from smsnapd.errors import DamageError, UsageError
from smsnapd.format.names import ManifestName
from smsnapd.model import ChunkRef, Entry, Flag, Kind, Listing, join_path
from smsnapd.repository import Repository
from smsnapd.repository.manifests import Recorded

_TOMBSTONE: Final = int(Kind.TOMBSTONE)
_DIRECTORY: Final = int(Kind.DIRECTORY)
_ALIAS: Final = int(Flag.ALIAS)
_ANEW: Final = int(Flag.ANEW)
_UNHEEDED: Final = frozenset({"mtime"})
"""Of a directory it moves with every name in it."""


class Version(NamedTuple):
    """What a path is from a recovery point on, without where its bytes lie; None: it is gone."""

    point: ManifestName
    entry: Entry | None


class Layer(NamedTuple):
    """What one recovery point says: what changed in it, or if it `is_whole`, everything."""

    point: ManifestName
    listings: Iterable[Listing]
    chunks: Sequence[ChunkRef]
    is_whole: bool


class Versions:
    """The versions of all paths that `wanted` says yes to: `found`, by path, oldest first.

    `have_same_bytes` is asked of a file that was stored anew and of which nothing but ctime has moved.
    """

    def __init__(self, wanted: Callable[[bytes], bool], have_same_bytes: Judge) -> None:
        self._wanted = wanted
        self._judge = have_same_bytes
        self._names = Names()
        self._now: dict[bytes, Placed] = {}
        self._below: Counter[bytes] = Counter()
        self._first_of: dict[bytes, bytes] = {}
        self.found: dict[bytes, list[Version]] = {}

    def add(self, layer: Layer) -> None:
        """The next recovery point. DamageError if its catalog is not whole; what came before that counts."""
        seen: set[bytes] = set()
        renewed: dict[bytes, Placed] = {}
        for directory, entries in layer.listings:
            for entry in entries:
                path = join_path(directory, entry.name)
                if (entry.kind != _DIRECTORY or entry.flags & _ANEW) and self._below.get(path, 0) > 0:
                    self._cut(layer.point, path)
                if self._wanted(path):
                    seen.add(path)
                    self._take(layer, path, entry)
                if entry.links > 1 and entry.kind not in (_TOMBSTONE, _DIRECTORY):
                    renewed[path] = self._names.whole(path, place(entry, layer.chunks))
        self._renew(layer.point, renewed, seen)
        for path in self._now.keys() - seen if layer.is_whole else ():
            self._is_gone(layer.point, path)

    def _take(self, layer: Layer, path: bytes, entry: Entry) -> None:
        if entry.kind == _TOMBSTONE:
            self._is_gone(layer.point, path)
            return
        self._first_of.pop(path, None)
        if entry.flags & _ALIAS:
            self._first_of[path] = entry.target
        self._is(layer.point, path, self._names.whole(path, place(entry, layer.chunks)))

    def _renew(self, point: ManifestName, renewed: dict[bytes, Placed], seen: set[bytes]) -> None:
        """What was stored anew under its first name alone has changed under the others too."""
        for path, first in list(self._first_of.items()) if renewed else ():
            if first in renewed and path not in seen and path in self._now:
                entry = replace(renewed[first].entry, name=path.rpartition(b"/")[2])
                self._is(point, path, renewed[first]._replace(entry=entry))

    def _is(self, point: ManifestName, path: bytes, placed: Placed) -> None:
        before = self._now.get(path)
        if before is None:
            self._below.update(_directories_above(path))
        self._now[path] = placed
        if before is None or self._differs(before, placed):
            slim = replace(placed.entry, xattrs=(), segments=(), header=None, content=())
            self.found.setdefault(path, []).append(Version(point, slim))

    def _differs(self, before: Placed, after: Placed) -> bool:
        found = set(differences(before, after, lambda one, other: True))
        if after.entry.kind == _DIRECTORY:
            return bool(found - _UNHEEDED)
        return bool(found) or bool(differences(before, after, self._judge))

    def _is_gone(self, point: ManifestName, path: bytes) -> None:
        self._first_of.pop(path, None)
        if self._now.pop(path, None) is not None:
            self._below.subtract(_directories_above(path))
            self.found[path].append(Version(point, None))

    def _cut(self, point: ManifestName, path: bytes) -> None:
        """What is no directory, or a new one, has nothing below it of what was there."""
        for below in [live for live in self._now if live.startswith(path + b"/")]:
            self._is_gone(point, below)


def _directories_above(path: bytes) -> Iterator[bytes]:
    position = path.find(b"/")
    while position >= 0:
        yield path[:position]
        position = path.find(b"/", position + 1)


def read_versions(
    repository: Repository,
    history: History,
    wanted: Callable[[bytes], bool],
    have_same_bytes: Judge,
    since: ManifestName | None = None,
) -> tuple[dict[bytes, list[Version]], list[Damaged]]:
    """The versions of what is `wanted`, and the recovery points that `visit_layers` could not read.

    From the first recovery point on, or from `since`, as of which everything that is there is a version.
    """
    versions = Versions(wanted, have_same_bytes)
    unread = visit_layers(repository, history, versions.add, since)
    return versions.found, unread


def visit_layers(
    repository: Repository,
    history: History,
    visit: Callable[[Layer], None],
    since: ManifestName | None = None,
) -> list[Damaged]:
    """Give `visit` the recovery points in their order, the first as a whole if it is `since`.

    Returns those that could not be read, by themselves or for what they follow from: up to the next full.
    """
    unread: list[Damaged] = []
    previous: Recorded | None = None
    for name in history.in_turn(history.names[history.names.index(since) if since else 0 :]):
        try:
            recorded = history.record(name)
            if name == since:
                visit(_whole(repository, history.chain(name.snapshot)))
            else:
                if unread and previous is None and name.kind != "full":
                    raise unread[-1].error  # what it follows from
                visit(_layer(repository, previous, recorded))
            previous = recorded
        except (DamageError, UsageError) as error:
            unread.append(Damaged(name, error))
            previous = None
    return unread


def _whole(repository: Repository, chain: list[Recorded]) -> Layer:
    """A recovery point's whole tree."""
    tree = SnapshotTree(repository, chain)
    return Layer(chain[-1].name, tree.listings(), tree.chunks, is_whole=True)


def _layer(repository: Repository, previous: Recorded | None, recorded: Recorded) -> Layer:
    """What a recovery point says of itself; DamageError if it does not follow from the one before."""
    is_whole = recorded.name.kind == "full"
    if not is_whole:
        if previous is None:
            what = f"read {recorded.name.object_name()}"
            raise DamageError(what, "the full that it follows from is missing")
        check_link(previous, recorded)
    tree = SnapshotTree(repository, [recorded])
    # The catalog of an image holds its pieces; `listings` says so.
    listings = tree.listings() if is_whole else tree.layer()
    return Layer(recorded.name, listings, tree.chunks, is_whole)
