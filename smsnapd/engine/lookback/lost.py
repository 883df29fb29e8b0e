"""What a volume has lost: what a recovery point has and the volume has not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from smsnapd.engine.history import Damaged, History
from smsnapd.engine.lookback.diff import pairs
from smsnapd.engine.lookback.live import LiveVolume
from smsnapd.engine.lookback.versions import Layer, Version, read_versions, visit_layers
from smsnapd.engine.trees.placed import find_placed, placed_tree
from smsnapd.engine.trees.reading import Contents
from smsnapd.engine.trees.tree import SnapshotTree
from smsnapd.format.names import ManifestName
from smsnapd.model import Entry, Flag, Kind, directory_key, join_path
from smsnapd.repository import Repository
from smsnapd.volume.tarball.marker import STAGING


class Lost(NamedTuple):
    """A path that is gone, as it was: `point` has it, `gone` no more (None: it went after the newest).

    Of a directory that went with all that was in it, `entries` and `bytes` are those of all.
    """

    path: bytes
    entry: Entry
    point: ManifestName
    gone: ManifestName | None
    entries: int
    bytes: int


def lost_since(
    repository: Repository, history: History, since: ManifestName, live: LiveVolume
) -> tuple[list[Lost], list[Damaged]]:
    """What was lost since a recovery point, the latest first, and which points could not be read."""
    wanted = _at_or_below(_candidates(repository, history, since))
    found, unread = read_versions(repository, history, wanted, lambda one, other: True, since)
    lost = [
        item for path, versions in found.items() if (item := as_lost(history, path, versions)) is not None
    ]
    lost = [item for item in lost if not live.has(item.path)]
    newest = SnapshotTree(repository, history.chain(history.names[-1].snapshot))
    for path, before, after in live.pairs(placed_tree(newest)):
        if before is not None and after is None and not live.has(path):
            lost.append(_one(path, before.entry, history.names[-1], None))
    return joined(item for item in lost if not item.path.startswith(STAGING)), unread


def as_lost(history: History, path: bytes, versions: list[Version]) -> Lost | None:
    """A path by its versions, if the newest recovery point has it no more."""
    if len(versions) < 2 or versions[-1].entry is not None:
        return None
    entry = versions[-2].entry
    assert entry is not None
    gone = versions[-1].point
    return _one(path, entry, history.names[history.names.index(gone) - 1], gone)


def wanted_back(
    repository: Repository,
    history: History,
    live: LiveVolume,
    contents: Contents,
    path: bytes,
    since: ManifestName | None,
) -> tuple[list[Lost], list[Damaged]]:
    """What is to be brought back for `path`, and which recovery points could not be read.

    It itself if the volume has it not; of a directory that is there, what is missing in it; else the newest
    version that is not what is there.
    """
    if live.is_directory(path):
        lost, unread = lost_since(repository, history, since or history.names[0], live)
        return [item for item in lost if item.path.startswith(path + b"/")], unread
    judge = contents.have_same_bytes
    found, unread = read_versions(repository, history, lambda at: at == path, judge, since)
    if path not in found:
        return [], unread
    if live.has(path):
        back = _other_version(repository, history, live, contents, path, found[path])
    else:
        back = _last(history, path, found[path])
    return ([] if back is None else [back]), unread


def _last(history: History, path: bytes, versions: list[Version]) -> Lost | None:
    """A path that the volume has not, as it was last."""
    entry = versions[-1].entry
    return as_lost(history, path, versions) if entry is None else _one(path, entry, history.names[-1], None)


def _other_version(
    repository: Repository,
    history: History,
    live: LiveVolume,
    contents: Contents,
    path: bytes,
    versions: list[Version],
) -> Lost | None:
    """The newest version that differs from the file that is there."""
    for version in reversed(versions):
        if version.entry is None:
            continue
        stored = find_placed(SnapshotTree(repository, history.chain(version.point.snapshot)), path)
        if stored is not None and not live.is_as(contents, path, stored):
            return _one(path, version.entry, version.point, None)
    return None


def _one(path: bytes, entry: Entry, point: ManifestName, gone: ManifestName | None) -> Lost:
    return Lost(path, entry, point, gone, 1, entry.size if entry.kind == Kind.REGULAR else 0)


def _candidates(repository: Repository, history: History, since: ManifestName) -> set[bytes]:
    """All paths of which a recovery point behind `since` says, or shows, that they are gone or no directory.

    What could not be read is told by who reads it again.
    """
    found: set[bytes] = set()
    directories: set[bytes] = set()

    def visit(layer: Layer) -> None:
        if layer.is_whole and layer.point != since:
            before = history.names[history.names.index(layer.point) - 1]
            found.update(_missing(repository, history, before, layer.point))
        for directory, entries in layer.listings:
            for entry in entries:
                path = join_path(directory, entry.name)
                is_new = entry.kind != Kind.DIRECTORY or entry.flags & Flag.ANEW
                if entry.kind == Kind.TOMBSTONE or (is_new and path in directories):
                    found.add(path)
                if entry.kind == Kind.DIRECTORY:
                    directories.add(path)

    visit_layers(repository, history, visit, since)
    return found


def _missing(
    repository: Repository, history: History, before: ManifestName, after: ManifestName
) -> Iterator[bytes]:
    """The paths that one recovery point has and another has not."""
    trees = [SnapshotTree(repository, history.chain(point.snapshot)) for point in (before, after)]
    for path, one, other in pairs(*map(placed_tree, trees)):
        if one is not None and (other is None or one.entry.kind != other.entry.kind):
            yield path


def _at_or_below(paths: set[bytes]) -> Callable[[bytes], bool]:
    def wanted(path: bytes) -> bool:
        while path:
            if path in paths:
                return True
            path = path.rpartition(b"/")[0]
        return False

    return wanted


def joined(lost: Iterable[Lost]) -> list[Lost]:
    """What went together with a directory counted with that; the latest loss first."""
    tops: dict[bytes, Lost] = {}
    for item in sorted(lost, key=lambda item: directory_key(item.path)):
        above = _above(tops, item)
        if above is None:
            tops[item.path] = item
        else:
            tops[above.path] = above._replace(
                entries=above.entries + item.entries, bytes=above.bytes + item.bytes
            )
    newest = (1 << 63) - 1
    return sorted(tops.values(), key=lambda item: item.gone.time_us if item.gone else newest, reverse=True)


def _above(tops: dict[bytes, Lost], item: Lost) -> Lost | None:
    path = item.path
    while path := path.rpartition(b"/")[0]:
        if path in tops and tops[path].gone == item.gone:
            return tops[path]
    return None
