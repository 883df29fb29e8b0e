"""A recovery point whose chain begins with a block image, restored to a device or file.

As it is, if the target is as large as the image or larger: the image, then its file system made clean, grown,
and what the tar deltas say applied to it. Onto a smaller one by files, into a new file system.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from smsnapd.engine.history import History, SnapshotSummary
from smsnapd.engine.image.compare import compare_files
from smsnapd.engine.image.device import WrittenImage, write_image
from smsnapd.engine.image.files import mounted_image
from smsnapd.engine.image.runs import data_bytes_of
from smsnapd.engine.progress import Progress
from smsnapd.engine.restore.run import RestoreOutcome, RestoreRequest, restore_tree
from smsnapd.engine.trees.tree import SnapshotTree
from smsnapd.errors import TargetError, UsageError
from smsnapd.format.image import Image
from smsnapd.format.manifest import Issue
from smsnapd.model import Kind, data_bytes, path_text
from smsnapd.repository import Repository
from smsnapd.store.base import StoreSettings
from smsnapd.volume import e2fsprogs
from smsnapd.volume.heldmount import PathSource, held_mount
from smsnapd.volume.imagetarget import ImageTarget, inspect_target, opened_target

_WRITABLE = "rw,errors=remount-ro"
_ENTRY_BYTES = 512
"""What a name takes in its directory, and attributes beside it, at most on average: an estimate."""


@dataclass(frozen=True)
class DeviceRequest:
    """Where to restore to, and how. `destroy`: what is there may go. `users` as `RestoreRequest` has them."""

    path: bytes
    destroy: bool = False
    verify: bool = False
    users: tuple[tuple[str, str], ...] = ()
    workers: int | None = None
    dry_run: bool = False


@dataclass(frozen=True)
class DeviceOutcome:
    """What was restored. `way` is `image`, `grown` or `files`; `files` came singly; sizes in bytes."""

    snapshot: SnapshotSummary
    path: bytes
    way: str
    size: int
    bytes: int
    fetched_bytes: int
    verified: int = 0
    files: int = 0
    not_restored: tuple[Issue, ...] = ()
    notes: tuple[str, ...] = ()
    damaged: int = 0


def restore_device(
    repository: Repository,
    settings: StoreSettings,
    history: History,
    snapshot: SnapshotSummary,
    request: DeviceRequest,
    progress: Progress,
) -> DeviceOutcome:
    """Write a recovery point to a device or file; nothing is changed before all that can be known is checked.

    UsageError for a chain that begins with a tar full. TargetError: in use, not empty, too small. DamageError
    if the repository cannot give it back; the target holds no file system then.
    """
    progress.phase("plan")
    tree = SnapshotTree(repository, history.chain(snapshot.id))
    image = image_of(tree)
    target = inspect_target(request.path, image.size, destroy=request.destroy)
    restore = _DeviceRestore(settings, tree, snapshot, request, target, image, progress)
    if request.dry_run:
        return restore.preview()
    if target.size < image.size:
        return restore.by_files()
    return restore.whole()


def image_of(tree: SnapshotTree) -> Image:
    """The image that a chain begins with; UsageError for one that begins with a tar full."""
    if tree.image is None:
        raise UsageError(
            f"restore snapshot {tree.newest.name.snapshot} to a device",
            "its chain begins with a tar full and not with a block image",
            "make a file system there, mount it, and restore with --target",
        )
    return tree.image


class _DeviceRestore:
    def __init__(
        self,
        settings: StoreSettings,
        tree: SnapshotTree,
        snapshot: SnapshotSummary,
        request: DeviceRequest,
        target: ImageTarget,
        image: Image,
        progress: Progress,
    ) -> None:
        self._settings = settings
        self._tree = tree
        self._snapshot = snapshot
        self._request = request
        self._target = target
        self._image = image
        self._progress = progress

    def preview(self) -> DeviceOutcome:
        """Which way it would be, and how much; whether files fit is known only when it is done."""
        if self._target.size < self._image.size:
            return self._outcome("files", WrittenImage(self._snapshot.bytes, 0, 0))
        self._check_possible()
        way = "grown" if self._target.size > self._image.size else "image"
        return self._outcome(way, WrittenImage(data_bytes_of(self._tree), 0, 0))

    # --- the image as it is

    @property
    def _changes(self) -> bool:
        """Whether files have to be changed in the image."""
        return not self._tree.is_bare_image or bool(self._request.users)

    def whole(self) -> DeviceOutcome:
        """Write the image, and what came behind it."""
        request, image, target = self._request, self._image, self._target
        grows = target.size > image.size
        self._check_possible()
        written = write_image(
            self._tree,
            self._settings,
            target,
            self._progress,
            verify=request.verify,
            workers=request.workers,
        )
        outcome = self._outcome("grown" if grows else "image", written)
        if image.filesystem != "ext4":
            return outcome
        self._progress.phase("check")
        e2fsprogs.clean(request.path)
        if grows:
            e2fsprogs.grow(request.path)
        if self._changes:
            outcome = self._with_files(outcome, *self._apply())
        return outcome

    def _check_possible(self) -> None:
        if self._image.filesystem == "ext4":
            e2fsprogs.check_tools("e2fsck", "resize2fs")
        elif self._changes:
            raise UsageError(
                f"restore snapshot {self._snapshot.id} to {path_text(self._request.path)}",
                "its files have to be changed there, and its file system is not ext4",
                "restore the block full that it follows",
            )
        if self._changes and os.geteuid() != 0:
            what = f"restore snapshot {self._snapshot.id} to {path_text(self._request.path)}"
            raise UsageError(what, "it has to be mounted, which only root may", "run this with sudo")

    def _apply(self) -> tuple[RestoreOutcome, int]:
        """Bring the image, mounted, to the moment of the recovery point, and map its owners."""
        with held_mount(PathSource(self._request.path), _WRITABLE) as mount:
            tree = self._tree.with_image_at(mount.root)
            outcome, verified = self._restored(tree, mount.root, in_place=True)
        e2fsprogs.clean(self._request.path)
        return outcome, verified

    # --- by files

    def by_files(self) -> DeviceOutcome:
        """Make a smaller file system, and restore the files into it, if they fit."""
        request, target = self._request, self._target
        what = f"restore snapshot {self._snapshot.id} to {path_text(request.path)}"
        if self._image.filesystem != "ext4":
            why = f"it has {target.size:,} bytes, the image {self._image.size:,}, and no ext4"
            raise TargetError(what, why, "choose a device that is at least as large")
        e2fsprogs.check_tools("mkfs.ext4", "dumpe2fs", "e2fsck")
        with mounted_image(self._tree, self._settings, self._progress) as mount:
            tree = self._tree.with_image_at(mount.root)
            like = e2fsprogs.describe(mount.device)
            inodes = self._check_fits(tree, like, what)
            with opened_target(target) as opened:
                opened.zero(0, target.size)
                opened.sync()
            e2fsprogs.make(request.path, like, inodes)
            with held_mount(PathSource(request.path), _WRITABLE) as made:
                restored, verified = self._restored(tree, made.root, in_place=False)
        e2fsprogs.clean(request.path)
        return self._with_files(self._outcome("files", WrittenImage(0, 0, 0)), restored, verified)

    def _check_fits(self, tree: SnapshotTree, like: e2fsprogs.Description, what: str) -> int:
        """How many inodes the files take; TargetError if they, or their data, do not fit."""
        self._progress.phase("measure")
        inodes = needed = 0
        for listing in tree.listings():
            for entry in listing.entries:
                is_alias = bool(entry.flags & 1)
                blocks = -(-data_bytes(entry) // like.block_size) if entry.kind == Kind.REGULAR else 1
                inodes += not is_alias
                needed += _ENTRY_BYTES + (0 if is_alias else blocks * like.block_size)
        room = e2fsprogs.capacity(self._target.size, like, inodes)
        if needed > room:
            why = f"its files take about {needed:,} bytes, and a file system there has room for {room:,}"
            raise TargetError(what, why, "choose a larger device; nothing was changed")
        return inodes

    # --- both

    def _restored(self, tree: SnapshotTree, root: bytes, *, in_place: bool) -> tuple[RestoreOutcome, int]:
        """Restore files to a mounted file system; what came of it, and bytes that were read back."""
        asked, progress = self._request, self._progress
        request = RestoreRequest(
            target=root, overwrite="always", delete=in_place, users=asked.users, workers=asked.workers
        )
        outcome = restore_tree(self._settings, tree, self._snapshot, request, progress, in_place=in_place)
        if not asked.verify:
            return outcome, 0
        missing = {issue.path for issue in outcome.not_restored}
        return outcome, compare_files(tree, root, missing, progress, in_place=in_place)

    def _outcome(self, way: str, written: WrittenImage) -> DeviceOutcome:
        return DeviceOutcome(
            self._snapshot,
            self._request.path,
            way,
            self._target.size,
            written.bytes,
            written.fetched_bytes,
            written.verified,
        )

    def _with_files(self, outcome: DeviceOutcome, restored: RestoreOutcome, verified: int) -> DeviceOutcome:
        return replace(
            outcome,
            verified=outcome.verified + verified,
            bytes=outcome.bytes + restored.bytes,
            fetched_bytes=outcome.fetched_bytes + restored.fetched_bytes,
            files=restored.files,
            not_restored=restored.not_restored,
            notes=restored.notes,
            damaged=restored.damaged,
        )
