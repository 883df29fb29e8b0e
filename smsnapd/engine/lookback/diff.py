"""What differs between two trees: two recovery points, or one and the volume as it is now.

Both are merged as streams; what is held are files with several names, for their grouping is a difference too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Literal, NamedTuple

from smsnapd.engine.lookback.sameness import TYPE, differences
from smsnapd.engine.trees.placed import Placed, PlacedListing
from smsnapd.model import Kind, directory_key, join_path

_REGULAR: Final = int(Kind.REGULAR)

ADDED: Final = "added"
REMOVED: Final = "removed"
CHANGED: Final = "changed"


class Change(NamedTuple):
    """One path that is not the same: as it was and as it is; None where it is not there.

    `differs` are the words of `sameness.differences`, and "links" for a file that has other names now.
    """

    path: bytes
    before: Placed | None
    after: Placed | None
    differs: tuple[str, ...] = ()

    @property
    def kind(self) -> Literal["added", "removed", "changed"]:
        """Which of them it is."""
        return ADDED if self.before is None else REMOVED if self.after is None else CHANGED

    @property
    def bytes_before(self) -> int:
        """The size of a regular file as it was; else 0."""
        return _size(self.before)

    @property
    def bytes_after(self) -> int:
        """The size of a regular file as it is; else 0."""
        return _size(self.after)


def _size(placed: Placed | None) -> int:
    return placed.entry.size if placed is not None and placed.entry.kind == _REGULAR else 0


PathJudge = Callable[[bytes, Placed, Placed], bool]
"""As `sameness.Judge`, of a path."""

Pair = tuple[bytes, Placed | None, Placed | None]


def diff(pairs: Iterable[Pair], have_same_bytes: PathJudge) -> Iterator[Change]:
    """The changes among `pairs` of a path's states, in their order; files with several names come last."""
    groups = _Groups()
    for path, before, after in pairs:
        if before is None or after is None:
            groups.meet(path, before, after)
            yield Change(path, before, after)
            continue
        found = differences(before, after, lambda one, other, at=path: have_same_bytes(at, one, other))  # type: ignore[misc]
        if before.first or after.first:
            groups.meet(path, before, after)
            groups.keep(Change(path, before, after, found))
        elif found:
            yield Change(path, before, after, found)
    yield from groups.changes()


def pairs(before: Iterable[PlacedListing], after: Iterable[PlacedListing]) -> Iterator[Pair]:
    """Both trees, merged by path."""
    left, right = _flat(before), _flat(after)
    one, two = next(left, None), next(right, None)
    while one is not None or two is not None:
        if two is None or (one is not None and one[0] < two[0]):
            assert one is not None
            yield one[1], one[2], None
            one = next(left, None)
        elif one is None or two[0] < one[0]:
            yield two[1], None, two[2]
            two = next(right, None)
        else:
            yield one[1], one[2], two[2]
            one, two = next(left, None), next(right, None)


def _flat(listings: Iterable[PlacedListing]) -> Iterator[tuple[tuple[bytes, bytes], bytes, Placed]]:
    for directory, entries in listings:
        key = directory_key(directory)
        for placed in entries:
            yield (key, placed.entry.name), join_path(directory, placed.entry.name), placed


class _Groups:
    """The names of files that have several, before and after."""

    def __init__(self) -> None:
        self._before: defaultdict[bytes, list[bytes]] = defaultdict(list)
        self._after: defaultdict[bytes, list[bytes]] = defaultdict(list)
        self._kept: list[Change] = []

    def meet(self, path: bytes, before: Placed | None, after: Placed | None) -> None:
        if before is not None and before.first:
            self._before[before.first].append(path)
        if after is not None and after.first:
            self._after[after.first].append(path)

    def keep(self, change: Change) -> None:
        self._kept.append(change)

    def changes(self) -> Iterator[Change]:
        """What was kept and differs, be it by its names alone."""
        for change in self._kept:
            assert change.before is not None
            assert change.after is not None
            one = self._before.get(change.before.first, [change.path])
            two = self._after.get(change.after.first, [change.path])
            is_same = one == two or change.differs == (TYPE,)
            differs = change.differs if is_same else (*change.differs, "links")
            if differs:
                yield change._replace(differs=differs)
