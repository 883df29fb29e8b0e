"""Files that were restored to a device, read back and compared with where they came from."""

from __future__ import annotations

import os
from collections.abc import Iterator

from smsnapd.engine.lookback.browse import contents_of
from smsnapd.engine.progress import Progress
from smsnapd.engine.trees.placed import Placed, placed_tree
from smsnapd.engine.trees.tree import SnapshotTree
from smsnapd.errors import DamageError
from smsnapd.model import Flag, Kind, join_path, path_text
from smsnapd.volume.tree import Tree


def compare_files(
    tree: SnapshotTree, root: bytes, missing: set[bytes], progress: Progress, *, in_place: bool
) -> int:
    """Read the regular files below `root` back, from the device; bytes that were found to be the same.

    `missing` are paths that were not restored. `in_place` leaves out those that lie in the image: they were
    compared with that. DamageError for the first that differs.
    """
    progress.phase("verify")
    compared = 0
    with Tree(root) as target:
        for path, placed in _files(tree):
            if path in missing or (in_place and placed.entry.header is None):
                continue
            if not _is_same(tree, target, path, placed):
                why = "what is read back is not what was written"
                raise DamageError(f"verify {path_text(path)}", why, "the device is broken: look at dmesg")
            compared += placed.entry.size
            progress.advance(files=1, bytes=placed.entry.size)
    return compared


def _files(tree: SnapshotTree) -> Iterator[tuple[bytes, Placed]]:
    for directory, entries in placed_tree(tree):
        for placed in entries:
            path = join_path(directory, placed.entry.name)
            is_first = placed.first in (b"", path)
            if placed.entry.kind == Kind.REGULAR and is_first and not placed.entry.flags & Flag.ALIAS:
                yield path, placed


def _is_same(tree: SnapshotTree, target: Tree, path: bytes, placed: Placed) -> bool:
    """Whether a file has the bytes that the repository, or the image, gives."""
    try:
        descriptor = target.open_file(path)
    except OSError:
        return False
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        position = 0
        for piece in contents_of(tree, path, placed):
            if os.pread(descriptor, len(piece), position) != piece:
                return False
            position += len(piece)
        return os.fstat(descriptor).st_size == position
    finally:
        os.close(descriptor)
