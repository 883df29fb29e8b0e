"""One image of a volume: found, read, stored, committed, and the index of its tree behind it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from smsnapd.engine.backup.finding import UNSETTLED_NS
from smsnapd.engine.backup.heldvolume import opened_state, state_away
from smsnapd.engine.backup.request import BackupRequest
from smsnapd.engine.backup.snapshot import with_report
from smsnapd.engine.chain.catalog import CatalogBuilder
from smsnapd.engine.chain.chunktable import ChunkTable
from smsnapd.engine.chain.committing import commit, new_manifest, tables_of
from smsnapd.engine.chain.index import Parent, cut_off, move_on, newest, next_name
from smsnapd.engine.chain.known import known_chunks
from smsnapd.engine.chain.tenure import Tenure, taken_over
from smsnapd.engine.environment.companion import Companion
from smsnapd.engine.given import Given
from smsnapd.engine.history import History
from smsnapd.engine.image.before import Before, DigestFile, Remembered, find_before
from smsnapd.engine.image.catalog import add_pieces
from smsnapd.engine.image.cellmap import CellMap
from smsnapd.engine.image.names import Names
from smsnapd.engine.image.passes import Moment, Passes
from smsnapd.engine.image.storage import ImageSource, ImageStorage
from smsnapd.engine.restore.extras import left_out
from smsnapd.errors import VolumeError
from smsnapd.format.image import Image
from smsnapd.format.manifest import Completeness, Consistency, Issue, Source, Statistics
from smsnapd.model import path_text
from smsnapd.repository.manifests import Recorded
from smsnapd.state import State
from smsnapd.volume.block.device import Device, device_of
from smsnapd.volume.block.ext4 import read_geometry
from smsnapd.volume.frozen import check_may_freeze
from smsnapd.volume.mounts import Mount, find_mount, used_bytes
from smsnapd.volume.scan import Excludes, ScanReport, entry_of
from smsnapd.volume.tree import Tree

_FORGOTTEN: Final = "the local state does not fit the last image: more may be stored than has changed"


@dataclass(frozen=True)
class Taken:
    """An image that was committed; `held_s` is how long writers waited for it at most."""

    committed: Recorded
    stored_cells: int
    stored_bytes: int
    held_s: float


def image_mount(root: bytes, consistency: str) -> Mount:
    """The mount of a volume of which an image can be made; VolumeError, saying why, of another.

    That is the root directory of a file system on a block device, and not the system's own if it is to be
    held.
    """
    mount = find_mount(root)
    if mount.root != b"/" or mount.mount_point != os.path.realpath(root):
        raise VolumeError(
            f"make an image of {path_text(root)}",
            f"it is not where a whole file system is mounted; {path_text(mount.mount_point)} is",
            'an image is of a whole file system: name that, or use mode = "tar"',
        )
    if consistency != "live":
        check_may_freeze(mount)
    return mount


def run_image(given: Given[BackupRequest], tenure: Tenure) -> Taken:
    """Make an image of the volume's device and commit it, under the tenure that was begun.

    The notes get what a person should know. Raises as `run_backup`. Whatever happens, the volume can be
    written to afterwards.
    """
    request = given.request
    mount = image_mount(request.root, request.consistency)
    with ExitStack() as stack:
        state, directory = stack.enter_context(_state(given))
        tree = stack.enter_context(Tree(request.root))
        device = stack.enter_context(Device(device_of(mount)))
        run = _ImageRun(given, tenure, mount, state, directory, tree, device)
        stack.callback(run.close)
        return run.go()


def bytes_in_use(request: BackupRequest) -> int:
    """How much of the volume's device an image would read, in bytes, about."""
    mount = image_mount(request.root, request.consistency)
    with Device(device_of(mount)) as device:
        if read_geometry(device) is None:
            return device.size
    return used_bytes(mount.mount_point)


@contextmanager
def _state(given: Given[BackupRequest]) -> Iterator[tuple[State, Path]]:
    """The index, and a directory for files; not on the volume, if that is to be held."""
    request = given.request
    repository_id, url = given.repository.repository_id, given.settings.url
    place = (request.state_dir, repository_id, request.volume, request.root, url)
    if request.consistency != "live":
        with state_away(*place) as away:
            yield away
        return
    with opened_state(*place, read_only=False) as state:
        yield state, state.path.parent


class _ImageRun:
    def __init__(
        self,
        given: Given[BackupRequest],
        tenure: Tenure,
        mount: Mount,
        state: State,
        directory: Path,
        tree: Tree,
        device: Device,
    ) -> None:
        self._given = given
        self._repository = given.repository
        self._request = given.request
        self._progress = given.progress
        self._tenure = tenure
        self._mount = mount
        self._state = state
        self._directory = directory
        self._tree = tree
        self._device = device
        self._companion = Companion(given.request.root, given.request.environment, given.progress)
        self._rewrites = 0

    def close(self) -> None:
        """Let go of what the run holds; safe at any moment."""
        self._companion.close()

    def go(self) -> Taken:
        """From the head to the commit."""
        history = History.load(self._repository, self._request.volume)
        self._tenure.listed(history)
        self._rewrites = history.rewrites
        for text in filter(None, (taken_over(self._tenure.lease), cut_off(history, self._state))):
            self._given.note(text)
        own = left_out(self._request.state_dir, self._given.settings.url)
        self._companion.begin(own, judging=False)
        head = newest(self._repository, history)
        digests = DigestFile(Path(f"{self._state.path}.image"))
        remembered = digests.head()
        before = find_before(self._repository, history, remembered.snapshot)
        with ExitStack() as stack:
            cells = CellMap(self._device.size, self._directory)
            stack.callback(cells.close)
            table = self._table(before)
            if before is not None:
                known = digests if before.snapshot == remembered.snapshot else None
                if known is None:
                    self._given.note(_FORGOTTEN)
                before.take_over(cells, known, table.data_keys)
            names = Names(self._tree, Excludes(self._request.exclude, own), self._directory)
            stack.callback(names.close)
            source = ImageSource(self._device.path, remembered.key)
            journal = self._state.journal
            with ImageStorage(self._given, self._tenure, source, cells, table, journal) as storage:
                passes = self._passes(names, storage, remembered.key)
                stack.callback(passes.close)
                moment = self._read(passes)
                image = self._image(passes)
                recorded = self._commit(head, storage, table, names, image, moment)
            digests.save(Remembered(recorded.name.snapshot, remembered.key, image.size), cells)
        self._state.journal.clear()
        self._given.notes.extend(self._companion.notes)
        if moment.held_s:
            self._given.note(f"the volume was held for {moment.held_s:.2f} seconds")
        return Taken(recorded, storage.stored_cells, recorded.manifest.statistics.stored_bytes, moment.held_s)

    def _table(self, before: Before | None) -> ChunkTable:
        committed, journal = before.chunks if before else {}, self._state.journal.read()
        return known_chunks(self._repository, self._request.volume, self._tenure, committed, journal)

    def _passes(self, names: Names, storage: ImageStorage, digest_key: bytes) -> Passes:
        return Passes(
            self._mount, self._device, digest_key, self._tree, names, storage, self._directory,
            self._given.clock_ns, self._progress,
        )  # fmt: skip

    def _read(self, passes: Passes) -> Moment:
        if self._request.consistency == "live":
            return passes.live()
        return passes.still(read_only=self._request.consistency == "read-only")

    def _image(self, passes: Passes) -> Image:
        geometry = passes.eyes.geometry
        if geometry is None:
            return Image(self._device.size, "", self._mount.filesystem_uuid)
        return Image(self._device.size, "ext4", geometry.uuid)

    def _commit(
        self,
        head: Parent | None,
        storage: ImageStorage,
        table: ChunkTable,
        names: Names,
        image: Image,
        moment: Moment,
    ) -> Recorded:
        """The catalog, the manifest, and the index of the tree as it was then."""
        catalog = CatalogBuilder(self._repository, self._request.volume, 0)
        add_pieces(catalog, storage, image, entry_of(b"", self._tree.stat(b"")), moment.time_ns)
        storage.finish()
        with self._state.update(anew=True) as update:
            for listing in names.listings(moment.time_ns - UNSETTLED_NS):
                update.put(listing)
            self._progress.phase("commit")
            name = next_name(self._request.volume, head, self._tenure.lease, moment.time_ns, "full")
            tables = tables_of(name, catalog, table)
            manifest = new_manifest(
                self._repository,
                name,
                head,
                self._given.clock_ns(),
                tables,
                source=Source(path_text(self._tree.root), self._mount.filesystem_uuid),
                consistency=_consistency(self._request.consistency),
                completeness=_completeness(names.report),
                statistics=Statistics(
                    *update.counts,
                    stored_bytes=storage.stored_bytes + catalog.stored_bytes,
                    changed=storage.stored_cells,
                    deleted=0,
                ),
                owners=catalog.owners(),
                image=image,
            )
            manifest = with_report(manifest, self._repository, self._tenure, self._companion)
            fresh = table.fresh(tables.by_number).values()
            recorded = commit(
                self._repository, self._tenure, manifest, tables.attached, fresh, self._request.grace_s
            )
            move_on(update, recorded, self._tree.root, self._mount.filesystem_uuid, self._rewrites)
        return recorded


def _completeness(report: ScanReport) -> Completeness:
    # They are in the image; but what becomes of what is below them no delta can tell.
    unreadable = tuple(sorted(Issue(path, f"unreadable: {why}") for path, why in report.unreadable))
    return Completeness(
        method="scan",
        complete=not unreadable,
        incomplete=unreadable,
        skipped=tuple(Issue(path, why) for path, why in report.skipped),
    )


def _consistency(asked: str) -> Consistency:
    if asked == "live":
        return "live"
    return "read-only" if asked == "read-only" else "freeze"
