"""Finding what changed: everything, where hints say, or all there is for an index that knows nothing."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Final, Literal

from smsnapd.engine.backup.changes import ChangeSet
from smsnapd.engine.backup.fresh import FreshTree
from smsnapd.engine.backup.looks import HintedLooks, Hints, Look, look_everywhere, stat_entry
from smsnapd.engine.backup.recheck import Rechecker
from smsnapd.engine.backup.request import BackupRequest
from smsnapd.engine.backup.scanning import StampedScan
from smsnapd.engine.given import Given
from smsnapd.errors import VolumeError
from smsnapd.format.manifest import Issue
from smsnapd.model import Entry, Listing, path_text
from smsnapd.state import State
from smsnapd.volume.attributes import Owners
from smsnapd.volume.scan import Excludes, ScanReport, list_directory, scan
from smsnapd.volume.tarball.read import PackReader
from smsnapd.volume.tree import Tree

UNSETTLED_NS: Final = 20_000_000
"""Coarse clocks hide a second write within a tick; no kernel's tick is longer than this."""


@dataclass(frozen=True)
class Scanned:
    """What one scan found. `root` and `filesystem` say of which volume; `reader` reads it."""

    changes: ChangeSet | FreshTree
    report: ScanReport
    reader: PackReader
    root: bytes
    filesystem: str
    started_ns: int
    method: Literal["scan", "events"]
    known_incomplete: tuple[Issue, ...] = ()

    @property
    def unsettled_from_ns(self) -> int:
        """What changed since then may change once more without a stat telling it."""
        return self.started_ns - UNSETTLED_NS

    def unreadable(self) -> list[Issue]:
        """What could not be looked at, and what could not be before and was not looked at again."""
        return [*self.known_incomplete, *self._unreadable_now()]

    def _unreadable_now(self) -> list[Issue]:
        return [Issue(path, f"unreadable: {why}") for path, why in self.report.unreadable]


def by_path(issues: list[Issue]) -> list[Issue]:
    """Each path once, with the first thing that was said of it."""
    first = {issue.path: issue for issue in reversed(issues)}
    return sorted(first.values())


def check_not_empty(tree: Tree, excludes: Excludes) -> None:
    """VolumeError for an empty directory where a volume was: that is not mounted, or a new one."""
    entries = list_directory(tree, excludes, ScanReport(), b"").entries
    if all(entry.name in (b"", b"lost+found") for entry in entries):
        raise VolumeError(
            f"back up {path_text(tree.root)}",
            "it is empty, and on another file system than what was backed up last",
            "mount or restore the volume; if empty is what it should be: smsnap backup --full",
        )


class Finder:
    """Finds what changed on one volume, once; holds it until it is closed."""

    def __init__(
        self,
        given: Given[BackupRequest],
        state: State,
        tree: Tree,
        filesystem: str,
        renew: Callable[[], None],
    ) -> None:
        """`renew` is called for every directory: the lease must not end while they are looked at."""
        self._given = given
        self._state = state
        self._tree = tree
        self._filesystem = filesystem
        self._renew = renew
        self._reader = PackReader(tree, state.digest_key, Owners())
        self._report = ScanReport()
        self._changes: ChangeSet | FreshTree = FreshTree(())

    def close(self) -> None:
        """Let go of what was found. May be called more than once."""
        self._changes.close()

    def find(
        self,
        excludes: Excludes,
        started_ns: int,
        hints: Hints | None,
        incomplete: tuple[Issue, ...],
        left: frozenset[int],
    ) -> Scanned:
        """What changed until `started_ns` at least; with `hints` it is looked for where they say.

        `incomplete` is what the last commit missed; what lies in the chunks `left` is to be stored anew.
        VolumeError if the volume is gone, which may show only while the changes are taken.
        """
        self._given.progress.phase("scan")
        if self._state.head is None and not self._given.request.dry_run:
            self._hold(FreshTree(self._everything(excludes)))
            return self._scanned(started_ns, None)
        names_key = self._given.repository.volume_keys(self._given.request.volume).chunk_names
        rechecker = Rechecker(self._reader, self._state, names_key, started_ns - UNSETTLED_NS)
        if hints is not None:
            known = self._where_hints_say(excludes, hints, incomplete, left, rechecker)
            if known is not None:
                return self._scanned(started_ns, known)
            # Where hints do not reach, a scan of everything decides.
            self._report = ScanReport()
        changes = self._begin(left, None)
        with closing(self._everywhere(excludes, changes)) as everywhere:
            self._compare(changes, everywhere, rechecker)
        return self._scanned(started_ns, None)

    def _scanned(self, started_ns: int, known: tuple[Issue, ...] | None) -> Scanned:
        """`known` is what is incomplete still after a hinted scan, None after one of everything."""
        return Scanned(
            self._changes,
            self._report,
            self._reader,
            self._tree.root,
            self._filesystem,
            started_ns,
            "scan" if known is None else "events",
            known or (),
        )

    def _where_hints_say(
        self,
        excludes: Excludes,
        hints: Hints,
        incomplete: tuple[Issue, ...],
        left: frozenset[int],
        rechecker: Rechecker,
    ) -> tuple[Issue, ...] | None:
        """What is incomplete still; None if the hints do not lead to all that must be recorded again."""
        changes = self._begin(left, self._stat_now)
        # What could not be read may be by now, and nothing tells of it.
        hints = hints._replace(subtrees=hints.subtrees | {issue.path for issue in incomplete})
        looks = HintedLooks(self._tree, excludes, self._report, self._state, hints)
        self._compare(changes, self._renewing(looks), rechecker)
        if changes.lacks_names():
            return None
        return tuple(issue for issue in incomplete if not looks.covered(issue.path))

    def _renewing(self, looks: Iterable[Look]) -> Iterator[Look]:
        for look in looks:
            self._renew()
            yield look

    def _everywhere(self, excludes: Excludes, changes: ChangeSet) -> Generator[Look, None, None]:
        """The looks at all that there is, or at what differs, if nothing else is asked for."""
        if changes.takes_stat_for_it:
            workers = self._given.workers
            scanning = StampedScan(self._tree, excludes, self._report, self._state, workers)
            yield from scanning.looks(self._renew)
        else:
            scanned = scan(self._tree, excludes, self._report)
            yield from self._renewing(look_everywhere(scanned, self._state.listings()))

    def _begin(
        self, left: frozenset[int], restat: Callable[[bytes, Entry], Entry | None] | None
    ) -> ChangeSet:
        changes = ChangeSet(self._state, reread=self._given.request.reread, restat=restat)
        self._hold(changes)
        changes.leave(left)
        return changes

    def _hold(self, changes: ChangeSet | FreshTree) -> None:
        """Go on with these changes."""
        self._changes.close()
        self._changes = changes

    def _compare(self, changes: ChangeSet, looks: Iterable[Look], rechecker: Rechecker) -> None:
        changes.compare(looks, _Unknown(self._report).covers, rechecker.settled)
        self._refuse_gone()

    def _everything(self, excludes: Excludes) -> Iterator[Listing]:
        """The whole volume; VolumeError at the end if there was none."""
        yield from scan(self._tree, excludes, self._report)
        self._refuse_gone()

    def _refuse_gone(self) -> None:
        if b"" in self._report.vanished:
            raise VolumeError(f"scan the volume {path_text(self._tree.root)}", "its root directory is gone")

    def _stat_now(self, path: bytes, indexed: Entry) -> Entry | None:
        return stat_entry(self._tree, self._report, path, indexed)


class _Unknown:
    """The paths that a scan could not look at: they, and what lies below them, stay as they were."""

    def __init__(self, report: ScanReport) -> None:
        self._report = report
        self._seen = 0
        self._paths: set[bytes] = set()

    def covers(self, path: bytes) -> bool:
        """Whether nothing is known of `path`."""
        unreadable = self._report.unreadable
        if self._seen < len(unreadable):
            self._paths.update(known for known, _ in unreadable[self._seen :])
            self._seen = len(unreadable)
        if not self._paths:
            return False
        while path and path not in self._paths:
            path = path.rpartition(b"/")[0]
        return path in self._paths
