"""What a volume was, at every moment: the history of each inode, and of which inode each path named.

Times are nanoseconds of the wall clock, as manifests have them. An operation takes effect somewhere between
its `begin_ns` and its `done_ns`; what it made is there from then until the next one is done.
"""

from __future__ import annotations

import bisect
import stat
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from tests.fault.daemon.seen import Content, Seen

FOREVER: Final = 1 << 63
TICK_NS: Final = 20_000_000
"""The kernel's coarse clock lies behind by so much at most."""


class Moment:
    """What an inode was from an operation on. `between` are contents that it had while that went on.

    `told_ns` is when it was told where to look: at its end, but of a store through a mapping when that is
    gone (FOREVER until then), and never if the name that it went through is gone and others are left.
    """

    __slots__ = ("begin_ns", "between", "done_ns", "seen", "told_ns")

    def __init__(
        self, begin_ns: int, done_ns: int, seen: Seen, between: tuple[Content, ...] = (), told_ns: int = 0
    ) -> None:
        self.begin_ns = begin_ns
        self.done_ns = done_ns
        self.seen = seen
        self.between = between
        self.told_ns = told_ns or done_ns


class Window(NamedTuple):
    """The time in which a recovery point looked at the volume; `told`: only where the kernel told it to."""

    begin_ns: int
    end_ns: int
    told: bool


class Inode:
    """A file or directory, from the first time that it was seen."""

    def __init__(self) -> None:
        self.moments: list[Moment] = []
        self.names = 0
        """How many paths name it now."""
        self.had_names = False
        """Whether it ever had several."""

    @property
    def now(self) -> Seen:
        """What it was last."""
        return self.moments[-1].seen

    def note(self, moment: Moment) -> None:
        """It was changed, perhaps."""
        if not self.moments or moment.between or moment.seen != self.now:
            self.moments.append(moment)

    def told(self, now_ns: int) -> None:
        """What the kernel had not told is told now, of the name that it was opened by."""
        for moment in () if self.had_names else reversed(self.moments):
            if moment.told_ns == FOREVER:
                moment.told_ns = now_ns

    def untold(self, since_ns: int) -> None:
        """A name that it had since then is gone: what was done through that may be told of that name alone.

        The kernel tells of the name that a file was opened by and of no other one. That is a known limit of
        watching (smsnapd.volume.watch): the next look at everything finds it.
        """
        for moment in reversed(self.moments):
            if moment.begin_ns < since_ns:
                return
            moment.told_ns = FOREVER

    def explains(self, seen: Seen, window: Window) -> bool:
        """Whether it can have been seen so within the window."""
        first = bisect.bisect_right(self.moments, window.end_ns, key=lambda moment: moment.begin_ns)
        for number in range(first - 1, -1, -1):
            moment = self.moments[number]
            before = self.moments[number - 1] if number else None
            until_ns = moment.told_ns if window.told else moment.done_ns
            if moment.seen == seen or (until_ns >= window.begin_ns and _is_under_way(seen, before, moment)):
                return True
            if moment.done_ns < window.begin_ns and until_ns < window.begin_ns:
                # This one was done and told before the window began: earlier ones are over.
                return False
        return False

    def during(self, window: Window) -> Iterator[Moment]:
        """Its moments in and around the window, for people."""
        for number, moment in enumerate(self.moments):
            after = self.moments[number + 1] if number + 1 < len(self.moments) else None
            if moment.begin_ns <= window.end_ns and (after is None or after.told_ns >= window.begin_ns):
                yield moment


def _is_under_way(seen: Seen, before: Moment | None, moment: Moment) -> bool:
    """Whether this may be seen while the operation of `moment` goes on."""
    now, old = moment.seen, before.seen if before is not None else moment.seen
    if seen.kind != now.kind or seen.target not in (now.target, old.target):
        return False
    if seen.mode not in (now.mode, old.mode) or seen.xattrs not in (now.xattrs, old.xattrs):
        return False
    recent = moment.begin_ns - TICK_NS <= seen.mtime_ns <= moment.done_ns
    if not recent and seen.mtime_ns not in (now.mtime_ns, old.mtime_ns):
        return False
    return _is_mixed(seen.content, (old.content, now.content, *moment.between))


def _is_mixed(content: Content, of: Iterable[Content]) -> bool:
    """Whether the size and each page are those of one of these contents."""
    known = list(of)
    size, pages = content
    if not any(size == other[0] for other in known):
        return False
    return all(
        any(number < len(other[1]) and other[1][number] == page for other in known)
        for number, page in enumerate(pages)
    )


class Naming(NamedTuple):
    """Which inode a path names from an operation on, None if none."""

    begin_ns: int
    done_ns: int
    inode: Inode | None


class Model:
    """The volume's history."""

    def __init__(self) -> None:
        self.names: dict[bytes, list[Naming]] = {}
        self.now: dict[bytes, Inode] = {}

    def bind(self, path: bytes, inode: Inode | None, begin_ns: int, done_ns: int) -> None:
        """The path names another inode, or none any more."""
        self.names.setdefault(path, []).append(Naming(begin_ns, done_ns, inode))
        before = self.now.pop(path, None)
        if before is not None:
            before.names -= 1
        if inode is not None:
            inode.names += 1
            inode.had_names = inode.had_names or inode.names > 1
            self.now[path] = inode

    def replace(self, path: bytes, inode: Inode | None, begin_ns: int, done_ns: int) -> None:
        """As `bind`; what the path named before, if anything, has lost a name by it."""
        before, namings = self.now.get(path), self.names.get(path)
        self.bind(path, inode, begin_ns, done_ns)
        if before is not None and namings is not None and before.names:
            before.untold(namings[-2].begin_ns)

    def below(self, path: bytes) -> list[bytes]:
        """The path, and all that are below it now."""
        if not stat.S_ISDIR(self.now[path].now.kind):
            return [path]
        prefix = path + b"/" if path else b""
        return [path, *(other for other in self.now if other.startswith(prefix) and other != path)]

    def present(self, when_ns: Iterable[int]) -> Iterator[set[bytes]]:
        """For each of these times, which must rise, the paths that were there; one set, which changes."""
        changes = sorted(
            (naming.done_ns, number, path, naming.inode is not None)
            for path, names in self.names.items()
            for number, naming in enumerate(names)
        )
        there: set[bytes] = set()
        place = 0
        for when in when_ns:
            while place < len(changes) and changes[place][0] < when:
                _, _, path, is_there = changes[place]
                (there.add if is_there else there.discard)(path)
                place += 1
            yield there

    def possible(self, path: bytes, window: Window) -> list[Inode | None]:
        """What the path can have named within the window."""
        found: list[Inode | None] = []
        names = self.names.get(path, [])
        last = bisect.bisect_right(names, window.end_ns, key=lambda naming: naming.begin_ns)
        for naming in reversed(names[:last]):
            found.append(naming.inode)
            if naming.done_ns < window.begin_ns:
                return found
        return [*found, None]
