"""Random histories: what `find`, `diff` and `undelete` say is what the volume was, moment by moment."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from smsnapd.engine.history import History
from smsnapd.engine.lookback.diff import Change, diff, pairs
from smsnapd.engine.lookback.live import LiveVolume
from smsnapd.engine.lookback.lost import lost_since
from smsnapd.engine.lookback.showing import ShownHistory, point_name
from smsnapd.engine.lookback.undelete import Wish, bring_back
from smsnapd.engine.lookback.versions import read_versions
from smsnapd.engine.progress import Silent
from smsnapd.engine.prune import PruneRequest, run_prune
from smsnapd.engine.retention import Policy
from smsnapd.engine.trees.placed import placed_tree
from smsnapd.engine.trees.reading import Contents
from smsnapd.engine.trees.tree import SnapshotTree
from smsnapd.format.names import ManifestName
from smsnapd.repository import Repository
from smsnapd.repository.tags import Tagged, put_tag
from smsnapd.store import StoreSettings
from smsnapd.volume.scan import Excludes
from tests.property.observed import Observed, Seen, observe
from tests.property.protected import VOLUME
from tests.property.test_histories import QUIET, STEPS, Round, Run, Steps

LONG = "SMSNAP_LONG" in os.environ
DIRECTORY = 0o040000
pytestmark = [pytest.mark.root, pytest.mark.loop, pytest.mark.slow]

EITHER = "content or holes"
WORDS = {
    "mode": "mode", "owner": "owner", "mtime_ns": "mtime", "device": "device", "target": "target",
    "xattrs": "xattrs", "content": "content", "size": "content", "data": "holes", "group": "links",
}  # fmt: skip


def words(before: Seen, after: Seen) -> set[str]:
    """What differs, in the words of `diff`, by another reckoning."""
    if before.kind != after.kind:
        return {"type"}
    found = {word for name, word in WORDS.items() if getattr(before, name) != getattr(after, name)}
    if before.size == after.size and "holes" in found:
        # The hash of `observe` is over the data alone: the same bytes have another one if they lie elsewhere.
        return found - {"content", "holes"} | {EITHER}
    return found - {"holes"} if "content" in found else found


def agree(said: dict[bytes, set[str]], wanted: dict[bytes, set[str]]) -> bool:
    """Whether it is the same, or one of both where the oracle does not know which."""
    either = {path for path, differ in wanted.items() if EITHER in differ}
    return said.keys() == wanted.keys() and all(
        (differ - {"content", "holes"} | {EITHER} if path in either else differ) == wanted[path]
        for path, differ in said.items()
    )


def expected(before: Observed, after: Observed) -> dict[bytes, set[str]]:
    found = {path: {"removed"} for path in before.keys() - after.keys()}
    found |= {path: {"added"} for path in after.keys() - before.keys()}
    both = {path: words(before[path], after[path]) for path in before.keys() & after.keys()}
    return found | {path: differ for path, differ in both.items() if differ}


def said(changes: Iterator[Change]) -> dict[bytes, set[str]]:
    found: dict[bytes, set[str]] = {}
    for change in changes:
        assert change.path not in found
        found[change.path] = set(change.differs) if change.kind == "changed" else {change.kind}
    return found


class Looker:
    """Holds what the verbs say against the moments of a run."""

    def __init__(self, run: Run, repository: Repository) -> None:
        self.repository = repository
        self.run = run
        self.history = History.load(repository, VOLUME)
        self.moments = [(self.point(name), moment) for name, moment in run.moments if moment is not None]

    def point(self, snapshot: str) -> ManifestName:
        return next(name for name in self.history.names if name.snapshot == snapshot)

    def tree(self, point: ManifestName) -> SnapshotTree:
        return SnapshotTree(self.repository, self.history.chain(point.snapshot))

    def contents(self) -> Contents:
        return Contents(self.repository, VOLUME, held_bytes=1)

    def live(self) -> LiveVolume:
        return LiveVolume(bytes(self.run.protected.root), Excludes())

    def check_diffs(self) -> None:
        contents = self.contents()
        for one, before in self.moments:
            for other, after in self.moments:
                merged = pairs(placed_tree(self.tree(one)), placed_tree(self.tree(other)))
                found = said(diff(merged, lambda path, a, b: contents.have_same_bytes(a, b)))
                assert agree(found, expected(before, after)), (one, other)

    def check_versions(self, since: ManifestName | None) -> None:
        moments = [moment for moment in self.moments if since is None or moment[0].sequence >= since.sequence]
        everything = read_versions(
            self.repository, self.history, lambda path: True, self.contents().have_same_bytes, since
        )
        assert everything[1] == []
        paths = set().union(*(moment for _, moment in moments))
        assert set(everything[0]) == paths
        for path, versions in everything[0].items():
            starts = [version.point for version in versions]
            assert starts == self.starts(path, moments), path
            for point, moment in moments:
                entry = [version.entry for version in versions if version.point.sequence <= point.sequence][
                    -1:
                ]
                seen = moment.get(path)
                assert (seen is None) == (entry in ([], [None])), path
                if seen is not None and entry[0] is not None and seen.kind != DIRECTORY:
                    assert (entry[0].mtime_ns, entry[0].uid) == (seen.mtime_ns, seen.owner[0])
                    assert entry[0].size == (len(seen.target) or seen.size)

    def starts(self, path: bytes, moments: list[tuple[ManifestName, Observed]]) -> list[ManifestName]:
        """The points at which a path began to be something else."""
        found: list[ManifestName] = []
        before: Seen | None = None
        for point, moment in moments:
            now = moment.get(path)
            if (before is None) != (now is None) or (
                before is not None and now is not None and words(before, now) - self.unheeded(now)
            ):
                found.append(point)
            before = now
        return found

    def unheeded(self, seen: Seen) -> set[str]:
        return {"links", "mtime"} if seen.kind == DIRECTORY else {"links"}

    def check_shown(self) -> None:
        """The file system of `mount`, without FUSE."""
        with closing(ShownHistory(self.repository, VOLUME, self.run.protected.root.parent)) as shown:
            self.check_points(shown)

    def check_points(self, shown: ShownHistory) -> None:
        for point, moment in self.moments:
            name = point_name(point)
            for path, seen in moment.items():
                place = name + b"/" + path if path else name
                found = shown.attributes(place)
                assert (found.mtime_ns, (found.uid, found.gid)) == (seen.mtime_ns, seen.owner)
                if seen.kind == stat.S_IFREG:
                    assert (found.size, len(shown.open(place).read(0, 1 << 30))) == (seen.size, seen.size)
                if seen.kind == DIRECTORY:
                    listed = {item.name for item in shown.names(place)}
                    assert listed == {
                        other.rpartition(b"/")[2]
                        for other in moment
                        if other and other.rpartition(b"/")[0] == path
                    }

    def check_live(self) -> None:
        now = observe(self.run.protected.root)
        for point, moment in self.moments:
            with closing(self.live()) as live:
                assert agree(said(self.changes_since(point, live)), expected(moment, now))
                assert live.report.unreadable == []

    def changes_since(self, point: ManifestName, live: LiveVolume) -> Iterator[Change]:
        contents, stored = self.contents(), placed_tree(self.tree(point))
        return diff(live.pairs(stored), lambda path, a, b: live.have_same_bytes(contents, path, a))

    def check_lost(self) -> None:
        root = self.run.protected.root
        now = observe(root)
        with closing(self.live()) as live:
            lost, unread = lost_since(self.repository, self.history, self.moments[0][0], live)
        assert unread == []
        gone = set().union(*(moment for _, moment in self.moments)) - now.keys()
        assert sum(item.entries for item in lost) == len(gone)
        moments = dict(self.moments)
        assert all(item.path in gone and item.path in moments[item.point] for item in lost)
        for item in lost:
            if os.path.lexists(os.path.join(bytes(root), item.path)):
                continue  # it came back with another one
            wish = Wish(item.path, item.point)
            protected = self.run.protected
            place = bytes(root), protected.state_dir
            done = bring_back(self.repository, protected.settings, self.history, *place, [wish], Silent())
            assert (done.not_restored, done.damaged) == ([], False)
            (back,) = done.back
            self.check_back(item.path, back.place, moments[item.point])

    def check_back(self, path: bytes, place: bytes, moment: Observed) -> None:
        """What is at `place` is what the moment had at `path`; its names may have become fewer."""
        now = observe(self.run.protected.root)
        below = [other for other in moment if other == path or other.startswith(path + b"/")]
        for other in below:
            assert not words(moment[other], now[place + other[len(path) :]]) - {"links"}
        for other in now.keys() & moment.keys():
            assert not other.startswith(b".smsnap")


def thin(run: Run, kept: set[int]) -> None:
    """Let go all but these and the newest two, which no policy lets go; what stays is folded."""
    with run.protected.repository(write_key=True) as repository:
        for number in kept:
            tagged = Tagged(run.moments[number % len(run.moments)][0], "stays")
            put_tag(repository, VOLUME, tagged, repository.write_key, is_set=True)
        policy = Policy(hourly=1)
        (pruned,) = run_prune(repository, PruneRequest(VOLUME, 1e6, policy=policy), Silent()).volumes
        assert pruned.error is None
        there = {name.snapshot for name in History.load(repository, VOLUME).names}
    run.moments = [(name, moment) for name, moment in run.moments if name in there]


def look_back(directory: Path, history: list[Round], after: Steps, kept: set[int] | None = None) -> None:
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, directory)
        run = Run(directory, StoreSettings(f"memory://{uuid.uuid4().hex}"))
        stack.callback(run.volume.close)
        for one in history:
            run.round(one)
        if kept is not None:
            thin(run, kept)
        repository = stack.enter_context(run.protected.repository())
        looker = Looker(run, repository)
        looker.check_diffs()
        looker.check_versions(None)
        looker.check_versions(looker.moments[len(looker.moments) // 2][0])
        looker.check_shown()
        for name, seed in after:
            run.volume.step(name, seed)
        looker.check_live()
        looker.check_lost()


def examples(count: int) -> settings:
    return settings(
        max_examples=count * 40 if LONG else count,
        derandomize=not LONG,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )


@examples(5)
@given(history=QUIET, after=STEPS)
def test_the_verbs_agree_with_the_volume(
    history: list[Round], after: Steps, new_directory: Callable[[], Path]
) -> None:
    look_back(new_directory(), history, after)


@examples(5)
@given(history=QUIET, after=STEPS, kept=st.sets(st.integers(0, 20), max_size=3))
def test_they_agree_where_most_was_let_go(
    history: list[Round], after: Steps, kept: set[int], new_directory: Callable[[], Path]
) -> None:
    look_back(new_directory(), history, after, kept)
