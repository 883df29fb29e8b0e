"""A restore drill: some files, or all, restored into a scratch directory, timed, and compared.

Each is compared with what the repository holds; or with the volume's own file, where the volume is here and
nobody has written to that file since the recovery point.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from smsnapd.engine.history import History, SnapshotSummary
from smsnapd.engine.image.files import files_of
from smsnapd.engine.image.listing import lies_in_image
from smsnapd.engine.lookback.diff import Pair, diff
from smsnapd.engine.lookback.live import LiveVolume, same_bytes
from smsnapd.engine.lookback.sameness import differences
from smsnapd.engine.progress import Progress
from smsnapd.engine.restore.run import RestoreOutcome, RestoreRequest, restore_tree
from smsnapd.engine.trees.placed import Placed, PlacedListing, placed_listings
from smsnapd.engine.trees.reading import Contents
from smsnapd.engine.trees.selection import Selection, select
from smsnapd.engine.trees.tree import SnapshotTree
from smsnapd.errors import TargetError
from smsnapd.model import Entry, Kind, data_bytes, join_path
from smsnapd.repository import Repository
from smsnapd.store.base import StoreSettings
from smsnapd.volume.scan import Excludes

SAMPLE_FILES: Final = 200
SAMPLE_BYTES: Final = 1024 * 1024 * 1024
_SPARE_BYTES: Final = 64 * 1024 * 1024
_BLOCK: Final = 4096


@dataclass(frozen=True)
class DrillRequest:
    """What to restore: `files` taken at random, of `SAMPLE_BYTES` in all, None for everything; and where.

    `scratch` is a directory on disk, in which one for the drill is made and removed. `live` is the root of
    the volume if it is here.
    """

    files: int | None
    scratch: Path
    live: bytes | None
    workers: int | None = None


class Difference(NamedTuple):
    """A path that did not come back as it was stored, and in what; `of` is "catalog" or "volume"."""

    path: bytes
    differs: tuple[str, ...]
    of: str


@dataclass(frozen=True)
class DrillReport:
    """What came of it. Times in seconds; `age_s` is that of the recovery point when the drill began.

    `compared_with_volume` of the files were held against the volume's own, the others against the repository.
    """

    snapshot: SnapshotSummary
    age_s: float
    is_all: bool
    restored: RestoreOutcome
    restore_s: float
    compare_s: float
    compared: int
    compared_with_volume: int
    differences: tuple[Difference, ...]

    @property
    def is_ok(self) -> bool:
        """Whether all came back as it was."""
        return not self.differences and not self.restored.not_restored


def run_drill(
    repository: Repository,
    settings: StoreSettings,
    history: History,
    snapshot: SnapshotSummary,
    request: DrillRequest,
    progress: Progress,
    *,
    chance: random.Random | None = None,
    now_us: int | None = None,
) -> DrillReport:
    """Do it, and remove the scratch directory. TargetError if that has no room; what a restore raises."""
    now_us = time.time_ns() // 1000 if now_us is None else now_us
    with ExitStack() as stack:
        chain = history.chain(snapshot.id)
        tree = stack.enter_context(files_of(repository, settings, chain, progress))
        paths = () if request.files is None else _sample(tree, request.files, chance or random.Random())
        selection = select(tree.listings, paths)
        target = stack.enter_context(_scratch(request.scratch, selection))
        began_s = time.monotonic()
        asked = RestoreRequest(target, paths, workers=request.workers)
        outcome = restore_tree(settings, tree, snapshot, asked, progress)
        restored_s = time.monotonic()
        progress.phase("compare")
        restored = stack.enter_context(closing(LiveVolume(target, Excludes())))
        live, image = (
            None if root is None else stack.enter_context(closing(LiveVolume(root, Excludes())))
            for root in (request.live, tree.image_root)
        )
        comparison = _Comparison(Contents(repository, history.volume), restored, live, image)
        found = comparison.differences(placed_listings(selection.listings(), tree.chunks))
        failed = {issue.path for issue in outcome.not_restored}
        return DrillReport(
            snapshot=snapshot,
            age_s=(now_us - snapshot.time_us) / 1e6,
            is_all=request.files is None,
            restored=outcome,
            restore_s=restored_s - began_s,
            compare_s=time.monotonic() - restored_s,
            compared=comparison.compared,
            compared_with_volume=comparison.compared_with_volume,
            differences=tuple(item for item in found if item.path not in failed),
        )


def _sample(tree: SnapshotTree, count: int, chance: random.Random) -> tuple[bytes, ...]:
    """So many regular files, each as likely as the other (reservoir sampling), one at least."""
    chosen: list[tuple[bytes, int]] = []
    met = 0
    for listing in tree.listings():
        for entry in listing.entries:
            if entry.kind != Kind.REGULAR:
                continue
            met += 1
            if len(chosen) < count:
                chosen.append((join_path(listing.directory, entry.name), entry.size))
            elif (row := chance.randrange(met)) < count:
                chosen[row] = (join_path(listing.directory, entry.name), entry.size)
    chance.shuffle(chosen)
    paths: list[bytes] = []
    room = SAMPLE_BYTES
    for path, size in chosen:
        room -= size
        if room >= 0 or not paths:
            paths.append(path)
    return tuple(paths)


@contextmanager
def _scratch(directory: Path, selection: Selection) -> Iterator[bytes]:
    """A directory with room for what was selected, removed at the end with all that is in it."""
    needed = sum(_room(entry) for listing in selection.listings() for entry in listing.entries)
    what = f"restore to a scratch directory in {directory}"
    try:
        status = os.statvfs(directory)
        if status.f_bavail * status.f_frsize < needed + _SPARE_BYTES:
            why = f"it needs {needed:,} bytes and has {status.f_bavail * status.f_frsize:,}"
            raise TargetError(what, why, "name a larger one with --scratch, or take fewer with --files")
        target = tempfile.mkdtemp(prefix="smsnap-drill-", dir=directory)
    except OSError as error:
        raise TargetError(what, error.strerror or str(error), "name another one with --scratch") from error
    try:
        yield os.fsencode(target)
    finally:
        _remove(target)


def _room(entry: Entry) -> int:
    return _BLOCK - -data_bytes(entry) // _BLOCK * _BLOCK


def _remove(target: str) -> None:
    """Whoever is not root may have to make directories accessible first; they are all the drill's own."""

    def again(remove: Callable[[str], object], path: str, _: object) -> None:
        os.chmod(os.path.dirname(path), 0o700)
        if os.path.isdir(path) and not os.path.islink(path):
            os.chmod(path, 0o700)
            shutil.rmtree(path)
        else:
            remove(path)

    shutil.rmtree(target, onerror=again)


class _Comparison:
    """Holds what was restored against what was stored, and against the volume where that is untouched."""

    def __init__(
        self,
        contents: Contents,
        restored: LiveVolume,
        live: LiveVolume | None,
        image: LiveVolume | None,
    ) -> None:
        self._contents = contents
        self._restored = restored
        self._live = live
        self._image = image
        self._is_root = os.geteuid() == 0
        self._differs: list[Difference] = []
        self._untouched: Entry | None = None
        self.compared = 0
        self.compared_with_volume = 0

    def differences(self, stored: Iterable[PlacedListing]) -> list[Difference]:
        """What is not as it should be."""
        for change in diff(self._met(self._restored.pairs(stored)), self._have_same_bytes):
            words = change.differs or ("missing" if change.after is None else "extra",)
            self._add(change.path, change.before, words, "catalog")
        for path, reason in self._restored.report.unreadable:
            self._differs.append(Difference(path, (reason,), "catalog"))
        return self._differs

    def _met(self, pairs: Iterable[Pair]) -> Iterator[Pair]:
        """The same pairs; what is restored is held against the volume's own as it passes."""
        for path, before, after in pairs:
            self.compared += before is not None
            self._untouched = None
            if self._live is not None and before is not None and after is not None:
                self._untouched = self._live.untouched(path, before.entry)
            if self._untouched is not None and after is not None:
                self.compared_with_volume += 1
                own = Placed(self._untouched, None)
                self._add(path, own, differences(own, after, lambda one, other: True), "volume")
            yield path, before, after

    def _have_same_bytes(self, path: bytes, stored: Placed, _: Placed) -> bool:
        if self._untouched is not None and self._live is not None:
            return same_bytes(self._live, self._restored, path)
        if self._image is not None and lies_in_image(stored.entry):
            return same_bytes(self._image, self._restored, path)
        return self._restored.have_same_bytes(self._contents, path, stored)

    def _add(self, path: bytes, expected: Placed | None, words: Iterable[str], of: str) -> None:
        ignored = set() if self._is_root else _not_for_everyone(expected)
        heeded = tuple(word for word in words if word not in ignored)
        if heeded:
            self._differs.append(Difference(path, heeded, of))


def _not_for_everyone(expected: Placed | None) -> set[str]:
    """What an ordinary user's restore cannot keep, and says so."""
    has_rights = expected is not None and expected.entry.mode & 0o6000
    return {"owner", "xattrs", *(("mode",) if has_rights else ())}
