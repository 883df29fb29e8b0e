"""A raw image that lies in a file, as dd has written it, taken in as a block full."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from smsnapd.engine.chain.catalog import CatalogBuilder
from smsnapd.engine.chain.committing import Tables, commit, new_manifest, tables_of
from smsnapd.engine.chain.index import Parent, newest, next_name
from smsnapd.engine.chain.known import known_chunks
from smsnapd.engine.chain.reuse import GRACE_S
from smsnapd.engine.chain.tenure import Tenure, held
from smsnapd.engine.given import Given
from smsnapd.engine.history import History, SnapshotSummary, summarise
from smsnapd.engine.image.before import find_before
from smsnapd.engine.image.catalog import add_pieces
from smsnapd.engine.image.cellmap import CellMap
from smsnapd.engine.image.storage import ImageSource, ImageStorage
from smsnapd.engine.progress import Progress
from smsnapd.errors import DamageError, VolumeError
from smsnapd.format import names
from smsnapd.format.image import Image
from smsnapd.format.manifest import Completeness, Manifest, Source, Statistics
from smsnapd.format.names import ManifestName
from smsnapd.model import BLOCK, Entry, Kind
from smsnapd.repository import Repository
from smsnapd.state import Journal
from smsnapd.store.base import StoreSettings
from smsnapd.volume import e2fsprogs
from smsnapd.volume.block.device import Device
from smsnapd.volume.block.ext4 import Geometry
from smsnapd.volume.block.look import Eyes, Log

_FIRST_INODES: Final = 10
"""Inodes of ext4's own (the kernel's Documentation/filesystems/ext4, "Special inodes")."""


@dataclass(frozen=True)
class ImageIntake:
    """What to take in: the raw image in the file `path`, which nobody changes meanwhile. `source` is what to
    call it. `workers` None means one a core.
    """

    path: Path
    source: str
    volume: str
    level: int = 1
    workers: int | None = None
    grace_s: float = GRACE_S


def import_image(
    repository: Repository,
    settings: StoreSettings,
    request: ImageIntake,
    progress: Progress,
    *,
    clock_ns: Callable[[], int] = time.time_ns,
) -> SnapshotSummary:
    """Make a block full of an image. LockedError if another writer has the lease; DamageError for a size that
    no device has. If anything raises there is no snapshot.

    Of an ext4 only what it has allocated is stored. One whose journal holds something, having been copied
    while it was in use, is marked as `live`.
    """
    names.check_volume_name(request.volume)
    size = request.path.stat().st_size
    if not size or size % BLOCK:
        why = f"it has {size:,} bytes, which is no multiple of {BLOCK}"
        raise DamageError(f"import {request.source}", why, "was the image cut off?")
    with held(repository, request.volume) as (tenure, history), ExitStack() as stack:
        given = Given(repository, settings, request, progress, clock_ns)
        return _Intake(given, tenure, stack).go(history)


class _Intake:
    def __init__(self, given: Given[ImageIntake], tenure: Tenure, stack: ExitStack) -> None:
        self._given = given
        self._repository = given.repository
        self._request = given.request
        self._progress = given.progress
        self._tenure = tenure
        self._started_ns = given.clock_ns()
        self._directory = Path(stack.enter_context(_scratch_directory()))
        self._device = stack.enter_context(Device(str(given.request.path), direct=False))
        self._eyes = Eyes(self._device, self._directory)
        stack.callback(self._eyes.close)
        self._cells = CellMap(self._device.size, self._directory)
        stack.callback(self._cells.close)

    def go(self, history: History) -> SnapshotSummary:
        """Store what is allocated, and commit behind the head."""
        repository, request = self._repository, self._request
        head = newest(repository, history)
        before = find_before(repository, history, "")
        # The chunks of the newest image need not be stored again.
        table = known_chunks(repository, request.volume, self._tenure, before.chunks if before else {}, [])
        catalog = CatalogBuilder(repository, request.volume, 0)
        look = self._eyes.look(0, Log.BY_ITS_STATE)
        source = ImageSource(self._device.path, secrets.token_bytes(32), direct=False)
        journal = Journal(self._directory / "journal")
        with ImageStorage(self._given, self._tenure, source, self._cells, table, journal) as storage:
            self._progress.phase("import", bytes=self._device.size)
            storage.store(look.suspects, look.allocated)
            image = _image(self._device, self._eyes.geometry)
            root = Entry(b"", int(Kind.DIRECTORY), mode=0o755, mtime_ns=self._started_ns)
            add_pieces(catalog, storage, image, root, self._started_ns)
            storage.finish()
            self._progress.phase("commit")
            name = next_name(request.volume, head, self._tenure.lease, self._started_ns, "full")
            tables = tables_of(name, catalog, table)
            manifest = self._manifest(name, head, catalog, tables, image, storage)
            fresh = table.fresh(tables.by_number).values()
            return summarise(
                commit(repository, self._tenure, manifest, tables.attached, fresh, request.grace_s)
            )

    def _manifest(
        self,
        name: ManifestName,
        head: Parent | None,
        catalog: CatalogBuilder,
        tables: Tables,
        image: Image,
        storage: ImageStorage,
    ) -> Manifest:
        geometry = self._eyes.geometry
        files, size = self._contents()
        return new_manifest(
            self._repository,
            name,
            head,
            self._given.clock_ns(),
            tables,
            source=Source(self._request.source, image.uuid),
            consistency="live" if geometry is not None and geometry.needs_recovery else "read-only",
            completeness=Completeness("scan", True),
            statistics=Statistics(
                entries=files,
                files=files,
                bytes=size,
                stored_bytes=storage.stored_bytes + catalog.stored_bytes,
                changed=storage.stored_cells,
                deleted=0,
            ),
            owners=catalog.owners(),
            image=image,
        )

    def _contents(self) -> tuple[int, int]:
        """Files and bytes, as the file system counts them; the whole of what is not ext4."""
        if self._eyes.geometry is None:
            return 0, self._device.size
        try:
            told = e2fsprogs.describe(os.fsencode(self._request.path))
        except VolumeError as error:
            self._progress.note(f"its files are not counted: {error.why}")
            return 0, self._device.size
        used = told.inodes - told.free_inodes - _FIRST_INODES
        return max(used, 0), (told.blocks - told.free_blocks) * told.block_size


def _image(device: Device, geometry: Geometry | None) -> Image:
    return Image(device.size, "", "") if geometry is None else Image(device.size, "ext4", geometry.uuid)


@contextlib.contextmanager
def _scratch_directory() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="smsnap-import-", dir=e2fsprogs.scratch()) as directory:
        yield directory
