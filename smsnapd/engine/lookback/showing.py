"""A volume's history as a read-only file system: a directory for each recovery point, its tree below it.

    latest -> 2026-11-26T21:02:13.204Z-e0ad5cee
    2026-11-26T21:02:13.204Z-e0ad5cee/…

A tree is read when somebody first looks into it, and the last few are kept; of contents only the chunks
are fetched that are read from. New recovery points appear while it is mounted.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from blake3 import blake3

from smsnapd.engine.history import History
from smsnapd.engine.lookback.imagenote import ImageNote
from smsnapd.engine.trees.placed import Placed
from smsnapd.engine.trees.reading import Contents, StoredFile
from smsnapd.engine.trees.tree import SnapshotTree
from smsnapd.engine.trees.treeindex import TreeIndex
from smsnapd.errors import DamageError, StoreError
from smsnapd.format.names import ManifestName
from smsnapd.model import FORMATS, Entry, Kind, Xattr, data_bytes
from smsnapd.repository import Repository
from smsnapd.volume.fuse.tree import Attributes, Name, OpenFile, ReadOnlyTree

LATEST: Final = b"latest"
HELD_TREES: Final = 4
LIST_AGAIN_S: Final = 30.0


def point_name(point: ManifestName) -> bytes:
    """The directory of a recovery point: its time in UTC, to the millisecond, and the beginning of its id."""
    moment = datetime.fromtimestamp(point.time_us // 1_000_000, UTC)
    millisecond = point.time_us // 1000 % 1000
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{millisecond:03}Z-{point.snapshot[:8]}".encode()


class ShownHistory:
    """The file system (`volume.fuse.ReadOnlyTree`) of one volume. Needs the identity."""

    def __init__(
        self,
        repository: Repository,
        volume: str,
        directory: Path,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`directory` is where unnamed files for the trees go: one on disk."""
        self._points = _Points(repository, volume, clock)
        self._trees = _Trees(self._points, directory)
        self._contents = Contents(repository, volume)
        self._reading = threading.Lock()

    def close(self) -> None:
        """Drop the unnamed files; nothing else may be called after it."""
        self._trees.close()

    def attributes(self, path: bytes) -> Attributes:
        """As `ReadOnlyTree`."""
        if not path:
            return Attributes(stat.S_IFDIR | 0o755, mtime_ns=self._points.newest_ns, inode=1, links=2)
        if path == LATEST:
            return Attributes(stat.S_IFLNK | 0o777, len(self._points.latest), inode=2)
        shown, below = self._at(path)
        return shown.attributes(below)

    def names(self, path: bytes) -> Iterable[Name]:
        """As `ReadOnlyTree`."""
        if not path:
            points = (Name(name, stat.S_IFDIR) for name in self._points.names())
            return [Name(LATEST, stat.S_IFLNK, 2), *points]
        shown, below = self._at(path)
        return shown.names(below)

    def read_link(self, path: bytes) -> bytes:
        """As `ReadOnlyTree`."""
        if path == LATEST:
            return self._points.latest
        shown, below = self._at(path)
        return shown.read_link(below)

    def open(self, path: bytes) -> OpenFile:
        """As `ReadOnlyTree`."""
        shown, below = self._at(path)
        return shown.open(below)

    def xattrs(self, path: bytes) -> Sequence[Xattr]:
        """As `ReadOnlyTree`."""
        if path in (b"", LATEST):
            return ()
        shown, below = self._at(path)
        return shown.xattrs(below)

    def _at(self, path: bytes) -> tuple[ReadOnlyTree, bytes]:
        """The file system of one recovery point, and the path in it."""
        name, _, below = path.partition(b"/")
        point = self._points.find(name)
        if self._points.is_of_image(point):
            return ImageNote(point), below
        return _ShownPoint(point, self._points, self._trees, self._contents, self._reading), below


class _ShownPoint:
    """The tree of one recovery point."""

    def __init__(
        self,
        point: ManifestName,
        points: _Points,
        trees: _Trees,
        contents: Contents,
        reading: threading.Lock,
    ) -> None:
        self._point = point
        self._points = points
        self._trees = trees
        self._contents = contents
        self._reading = reading

    def attributes(self, path: bytes) -> Attributes:
        return _attributes(self._point, self._placed(path))

    def names(self, path: bytes) -> Iterable[Name]:
        with self._trees.use(self._point) as tree:
            entries = tree.entries(path)
        return [Name(entry.name, FORMATS[Kind(entry.kind)]) for entry in entries]

    def read_link(self, path: bytes) -> bytes:
        entry = self._placed(path).entry
        if entry.kind != Kind.SYMLINK:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return entry.target

    def open(self, path: bytes) -> OpenFile:
        return ShownFile(self._contents, self._placed(path), self._reading)

    def xattrs(self, path: bytes) -> Sequence[Xattr]:
        return self._placed(path).entry.xattrs

    def _placed(self, path: bytes) -> Placed:
        if not path:
            return Placed(self._points.root(self._point))
        with self._trees.use(self._point) as tree:
            found = tree.find(path)
        if found is None:
            raise _no_such_name()
        return found


class ShownFile:
    """A file that somebody has opened."""

    def __init__(self, contents: Contents, placed: Placed, lock: threading.Lock) -> None:
        self._contents = contents
        self._file = StoredFile(placed)
        self._lock = lock

    def read(self, offset: int, size: int) -> bytes:
        """As `volume.fuse.OpenFile`."""
        with self._lock:
            return bytes(self._contents.read(self._file, offset, size))

    def close(self) -> None:
        """Nothing is held open."""


class _Points:
    """The recovery points, listed anew now and then, and the root directories of their trees."""

    def __init__(self, repository: Repository, volume: str, clock: Callable[[], float]) -> None:
        self._repository = repository
        self._volume = volume
        self._clock = clock
        self._lock = threading.RLock()
        self._roots: dict[ManifestName, Entry] = {}
        self._of_image: dict[ManifestName, bool] = {}
        self._list()

    def _list(self) -> None:
        self._history = History.load(self._repository, self._volume)
        self._by_name = {point_name(point): point for point in self._history.names}
        self._listed_s = self._clock()

    def _refresh(self) -> None:
        if self._clock() - self._listed_s > LIST_AGAIN_S:
            self._listed_s = self._clock()
            with contextlib.suppress(StoreError):  # what is known stays, and can be read again when it can
                self._list()

    def names(self) -> list[bytes]:
        with self._lock:
            self._refresh()
            return list(self._by_name)

    @property
    def latest(self) -> bytes:
        with self._lock:
            self._refresh()
            return point_name(self._history.names[-1])

    @property
    def newest_ns(self) -> int:
        with self._lock:
            self._refresh()
            return self._history.names[-1].time_us * 1000

    def find(self, name: bytes) -> ManifestName:
        with self._lock:
            if name not in self._by_name:
                self._refresh()
            if name not in self._by_name:
                raise _no_such_name()
            return self._by_name[name]

    def tree(self, point: ManifestName) -> SnapshotTree:
        with self._lock:
            if point not in self._history.names:  # a prune has removed it meanwhile
                raise _no_such_name()
            return SnapshotTree(self._repository, self._history.chain(point.snapshot))

    def is_of_image(self, point: ManifestName) -> bool:
        """Whether its chain begins with a block image."""
        with self._lock:
            if point not in self._of_image:
                before = [name for name in self._history.names if name <= point and name.kind == "full"]
                image = self._history.record(before[-1]).manifest.image if before else None
                self._of_image[point] = image is not None
            return self._of_image[point]

    def root(self, point: ManifestName) -> Entry:
        """The root of a point's tree, from the newest catalog up to it that has one; nothing is folded."""
        with self._lock:
            if point in self._roots:
                return self._roots[point]
            passed: list[ManifestName] = []
            for name in reversed([name for name in self._history.names if name <= point]):
                found = self._roots.get(name) or self._own_root(name)
                passed.append(name)
                if found is not None:
                    self._roots.update(dict.fromkeys(passed, found))
                    return found
        raise DamageError(f"read {point.object_name()}", "the full that it follows from is missing")

    def _own_root(self, point: ManifestName) -> Entry | None:
        layer = SnapshotTree(self._repository, [self._history.record(point)]).layer()
        first = next(iter(layer), None)
        return (
            first.entries[0]
            if first is not None and first.directory == b"" and not first.entries[0].name
            else None
        )


class _Slot:
    """A tree that somebody wants, and how many use it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.tree: TreeIndex | None = None
        self.users = 0
        self.is_held = True


class _Trees:
    """The trees that were looked into last."""

    def __init__(self, points: _Points, directory: Path) -> None:
        self._points = points
        self._directory = directory
        self._lock = threading.Lock()
        self._slots: OrderedDict[ManifestName, _Slot] = OrderedDict()

    @contextlib.contextmanager
    def use(self, point: ManifestName) -> Iterator[TreeIndex]:
        """The tree of a point, for one thread at a time; read now if it is none of the last."""
        slot = self._enter(point)
        try:
            with slot.lock:
                if slot.tree is None:
                    slot.tree = TreeIndex(self._points.tree(point), self._directory)
                yield slot.tree
        finally:
            self._leave(slot)

    def close(self) -> None:
        with self._lock:
            for slot in self._slots.values():
                slot.is_held = False
                _close_unused(slot)
            self._slots.clear()

    def _enter(self, point: ManifestName) -> _Slot:
        with self._lock:
            slot = self._slots.setdefault(point, _Slot())
            slot.users += 1
            self._slots.move_to_end(point)
            if len(self._slots) > HELD_TREES:
                _, dropped = self._slots.popitem(last=False)
                dropped.is_held = False
                _close_unused(dropped)
            return slot

    def _leave(self, slot: _Slot) -> None:
        with self._lock:
            slot.users -= 1
            _close_unused(slot)


def _close_unused(slot: _Slot) -> None:
    if not slot.is_held and not slot.users and slot.tree is not None:
        slot.tree.close()


def _attributes(point: ManifestName, placed: Placed) -> Attributes:
    entry = placed.entry
    return Attributes(
        mode=FORMATS[Kind(entry.kind)] | (0o777 if entry.kind == Kind.SYMLINK else entry.mode),
        size=entry.size,
        uid=entry.uid,
        gid=entry.gid,
        mtime_ns=entry.mtime_ns,
        ctime_ns=entry.ctime_ns,
        inode=_inode(point, entry),
        links=entry.links,
        rdev=os.makedev(entry.rdev >> 32, entry.rdev & 0xFFFFFFFF),
        data_bytes=data_bytes(entry) if entry.kind == Kind.REGULAR else 0,
    )


def _inode(point: ManifestName, entry: Entry) -> int:
    """The same for all names of a file in one tree, and another one in every other tree.

    Who copies several trees at once would take their files for one, by the inode that the volume had.
    """
    known = point.snapshot.encode() + entry.inode.to_bytes(8, "little")
    return int.from_bytes(blake3(known).digest(8), "little") | 1 << 33


def _no_such_name() -> OSError:
    return OSError(errno.ENOENT, os.strerror(errno.ENOENT))
