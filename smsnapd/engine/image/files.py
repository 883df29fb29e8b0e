"""The files of a recovery point, also where its chain begins with an image: that is mounted for the while.

The image is shown as one file through FUSE, chunks being fetched as they are touched, and mounted from there,
read-only, where nobody else sees it. Where there is no FUSE, and for an image that was read live, whose
journal has to be replayed, it is written to a sparse temporary file first.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from smsnapd.engine.image.device import write_image
from smsnapd.engine.image.reader import ChunkSource, ImageReader
from smsnapd.engine.image.runs import RunIndex, data_bytes_of, runs_of
from smsnapd.engine.progress import Progress
from smsnapd.engine.restore.extras import directory_of
from smsnapd.engine.trees.tree import SnapshotTree
from smsnapd.errors import TargetError, UsageError, VolumeError
from smsnapd.model import ChunkRef, Xattr
from smsnapd.repository import Repository
from smsnapd.repository.manifests import Recorded
from smsnapd.store.base import StoreSettings
from smsnapd.volume import e2fsprogs, fuse
from smsnapd.volume.heldmount import HeldMount, MountSource, PathSource, held_mount
from smsnapd.volume.imagetarget import ImageTarget

FILE: Final = b"image"
_STILL: Final = "ro,noload,errors=continue"
"""A frozen or read-only image has an empty journal, and none of its chunks can be written to."""
_REPLAYED: Final = "ro,errors=continue"
_MANY_S: Final = 86400.0
_ROOM: Final = 1024 * 1024 * 1024
"""Bytes that a temporary image leaves free where it lies."""


@contextlib.contextmanager
def files_of(
    repository: Repository, settings: StoreSettings, chain: list[Recorded], progress: Progress
) -> Iterator[SnapshotTree]:
    """The tree of a recovery point whose files can be listed and read, for as long as the context lasts.

    Of a block image this needs root, and ext4: UsageError for others. Raises DamageError, VolumeError.
    """
    tree = SnapshotTree(repository, chain)
    if tree.image is None:
        yield tree
        return
    with mounted_image(tree, settings, progress) as mount:
        yield tree.with_image_at(mount.root)


@contextlib.contextmanager
def mounted_image(tree: SnapshotTree, settings: StoreSettings, progress: Progress) -> Iterator[HeldMount]:
    """The file system in the image that a chain begins with, mounted read-only. As `files_of`."""
    _check_mountable(tree)
    progress.phase("mount")
    if tree.base.consistency != "live":
        try:
            fuse.check_available()
        except VolumeError as error:
            progress.note(f"the image is written to a temporary file: {error.why}; {error.hint}")
        else:
            with held_mount(_fuse_source(tree, settings), _STILL) as mount:
                yield mount
            return
    with _temporary_image(tree, settings, progress) as source, held_mount(source, _REPLAYED) as mount:
        yield mount


def _check_mountable(tree: SnapshotTree) -> None:
    image = tree.image
    assert image is not None
    what = f"look into the image of snapshot {tree.base.name.snapshot}"
    if image.filesystem != "ext4":
        raise UsageError(what, "its file system is not ext4", "restore it to a device, or export it")
    if os.geteuid() != 0:
        raise UsageError(what, "it has to be mounted, which only root may", "run this with sudo")


# --- through FUSE


@dataclass(frozen=True)
class _FuseSource:
    """The image as a file that is not there, in the process that mounts it."""

    task: _ImageTreeTask

    @property
    def needed(self) -> tuple[bytes, ...]:
        """The repository's directory, if it is one."""
        return tuple(directory_of(self.task.source.settings.url))

    @contextlib.contextmanager
    def provide(self, directory: bytes) -> Iterator[bytes]:
        """Mount a directory with that file in it."""
        options = fuse.FuseOptions(source="smsnap-image", cache_s=_MANY_S)
        with fuse.mounted(self.task, directory, options):
            yield os.path.join(directory, FILE)


@dataclass(frozen=True)
class _ImageTreeTask:
    """Opens the image in the process that serves it; travels over private pipes only."""

    size: int
    index: RunIndex
    refs: dict[int, ChunkRef]
    source: ChunkSource

    def __call__(self) -> fuse.ReadOnlyTree:
        """A directory with one file."""
        return _ImageTree(ImageReader(self.size, self.index, self.refs, self.source))


def _fuse_source(tree: SnapshotTree, settings: StoreSettings) -> MountSource:
    image = tree.image
    assert image is not None
    index = RunIndex(runs_of(image, tree.pieces()))
    used = index.chunks()
    refs = {number: tree.chunks[number] for number in used}
    return _FuseSource(_ImageTreeTask(image.size, index, refs, ChunkSource.of(tree, settings, used)))


class _ImageTree:
    """One file in one directory; safe for several threads."""

    def __init__(self, reader: ImageReader) -> None:
        self._reader = reader

    def attributes(self, path: bytes) -> fuse.Attributes:
        """Of the directory, or of the file."""
        if not path:
            return fuse.Attributes(stat.S_IFDIR | 0o700, inode=1, links=2)
        if path != FILE:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        return fuse.Attributes(stat.S_IFREG | 0o400, self._reader.size, inode=2)

    def names(self, path: bytes) -> Iterable[fuse.Name]:
        """The file."""
        return (fuse.Name(FILE, stat.S_IFREG, 2),)

    def read_link(self, path: bytes) -> bytes:
        """Nothing is a link."""
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    def open(self, path: bytes) -> fuse.OpenFile:
        """The image; all readers share one cache."""
        return _ImageFile(self._reader)

    def xattrs(self, path: bytes) -> Sequence[Xattr]:
        """None."""
        return ()


class _ImageFile:
    """The image, opened."""

    def __init__(self, reader: ImageReader) -> None:
        self._reader = reader

    def read(self, offset: int, size: int) -> bytes:
        """Read it."""
        return self._reader.read(offset, size)

    def close(self) -> None:
        """The reader stays, for the next."""


# --- without FUSE


@contextlib.contextmanager
def _temporary_image(
    tree: SnapshotTree, settings: StoreSettings, progress: Progress
) -> Iterator[MountSource]:
    """The image in a sparse file, its journal replayed; the space that takes is said first."""
    assert tree.image is not None
    needed = data_bytes_of(tree)
    with tempfile.TemporaryDirectory(prefix="smsnap-image-", dir=e2fsprogs.scratch()) as directory:
        free = shutil.disk_usage(directory).free
        progress.note(f"a temporary copy of the image in {directory} takes {needed:,} bytes")
        if needed + _ROOM > free:
            why = f"a temporary copy takes {needed:,} bytes, and {free:,} are free in {directory}"
            raise TargetError("mount the image", why, "make room there, or restore it to a device")
        path = os.path.join(os.fsencode(directory), FILE)
        write_image(tree, settings, ImageTarget(path, tree.image.size, False, True), progress)
        e2fsprogs.clean(path)
        yield PathSource(path)
