"""A recovery point as a raw image, byte by byte: for a pipe, or a file that is packed or sealed."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import Final

from smsnapd.engine.history import History, SnapshotSummary
from smsnapd.engine.image.reader import ChunkSource, ImageReader
from smsnapd.engine.image.restore import DeviceRequest, image_of, restore_device
from smsnapd.engine.image.runs import RunIndex, data_bytes_of, runs_of
from smsnapd.engine.progress import Progress
from smsnapd.engine.trees.tree import SnapshotTree
from smsnapd.errors import TargetError
from smsnapd.repository import Repository
from smsnapd.store.base import StoreSettings
from smsnapd.volume import e2fsprogs

_PIECE: Final = 4 * 1024 * 1024
_SPARE: Final = 1024 * 1024 * 1024
"""Bytes that a temporary image leaves free where it lies."""


class RawImage:
    """The image of a recovery point, holes as zeros; `size` is its own, in bytes.

    It is what was read, bit by bit, if the recovery point is a block full. With tar deltas behind that, these
    are applied first, to a temporary sparse file, as `restore_device` does. Raises as that.
    """

    def __init__(
        self, repository: Repository, settings: StoreSettings, history: History, snapshot: SnapshotSummary
    ) -> None:
        self._repository = repository
        self._settings = settings
        self._history = history
        self._snapshot = snapshot
        self._tree = SnapshotTree(repository, history.chain(snapshot.id))
        self.size = image_of(self._tree).size

    def write(self, write: Callable[[memoryview], object], progress: Progress) -> None:
        """Write it, piece by piece."""
        if self._tree.is_bare_image:
            _stream(self._tree, self._settings, write, progress)
            return
        snapshot, history = self._snapshot, self._history
        with _temporary(self._repository, self._settings, history, snapshot, progress) as path:
            _stream_file(path, write, progress)


def _stream(
    tree: SnapshotTree, settings: StoreSettings, write: Callable[[memoryview], object], progress: Progress
) -> None:
    image = image_of(tree)
    progress.phase("export", bytes=image.size)
    index = RunIndex(runs_of(image, tree.pieces()))
    used = index.chunks()
    refs = {number: tree.chunks[number] for number in used}
    source = ChunkSource.of(tree, settings, used)
    with contextlib.closing(ImageReader(image.size, index, refs, source)) as reader:
        for offset in range(0, image.size, _PIECE):
            piece = reader.read(offset, _PIECE)
            write(memoryview(piece))
            progress.advance(bytes=len(piece))


def _stream_file(path: bytes, write: Callable[[memoryview], object], progress: Progress) -> None:
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        progress.phase("export", bytes=size)
        while piece := file.read(_PIECE):
            write(memoryview(piece))
            progress.advance(bytes=len(piece))


@contextlib.contextmanager
def _temporary(
    repository: Repository,
    settings: StoreSettings,
    history: History,
    snapshot: SnapshotSummary,
    progress: Progress,
) -> Iterator[bytes]:
    """The recovery point in a sparse file; the space that takes is said first."""
    tree = SnapshotTree(repository, history.chain(snapshot.id))
    needed = snapshot.bytes + (data_bytes_of(tree) if tree.image is not None else 0)
    with tempfile.TemporaryDirectory(prefix="smsnap-image-", dir=e2fsprogs.scratch()) as directory:
        free = shutil.disk_usage(directory).free
        progress.note(f"a temporary image in {directory} takes up to {needed:,} bytes")
        if needed + _SPARE > free:
            why = f"a temporary image takes up to {needed:,} bytes, and {free:,} are free in {directory}"
            raise TargetError("write the image to a pipe", why, "restore it to a device or file")
        path = os.path.join(os.fsencode(directory), b"image")
        restore_device(repository, settings, history, snapshot, DeviceRequest(path), progress)
        yield path
