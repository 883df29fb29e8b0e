"""Looking into a recovery point without restoring it: its entries, the contents of one file."""

from __future__ import annotations

from collections.abc import Iterator

from smsnapd.engine.image.listing import lies_in_image, read_pieces
from smsnapd.engine.trees.placed import Placed, find_placed
from smsnapd.engine.trees.reading import WINDOW_BYTES, Contents
from smsnapd.engine.trees.tree import SnapshotTree
from smsnapd.errors import UsageError
from smsnapd.model import Entry, Kind, join_path, path_text
from smsnapd.volume.tree import Tree


def list_entries(tree: SnapshotTree, path: bytes, recursive: bool) -> Iterator[tuple[bytes, Entry]]:
    """A directory's entries, or all below it, or one entry that is no directory; paths and entries.

    UsageError if the snapshot has no such path.
    """
    found = False
    for listing in tree.listings():
        for entry in listing.entries:
            here = join_path(listing.directory, entry.name)
            if here == path:
                found = True
                if entry.kind != Kind.DIRECTORY:
                    yield here, entry
            elif listing.directory == path or (recursive and _is_below(here, path)):
                yield here, entry
    if not found:
        raise _no_such_path("list", path)


def _is_below(path: bytes, ancestor: bytes) -> bool:
    return not ancestor or path.startswith(ancestor + b"/")


def _no_such_path(verb: str, path: bytes) -> UsageError:
    return UsageError(
        f"{verb} {path_text(path)}", "the snapshot has no such path", "`smsnap ls` shows what it has"
    )


def open_file(tree: SnapshotTree, path: bytes) -> Iterator[bytes | bytearray]:
    """The contents of a regular file, piece by piece, holes as zeros; fetches what it lies in and no more.

    UsageError if there is no such path, or it is no regular file.
    """
    placed = find_placed(tree, path)
    if placed is None:
        raise _no_such_path("read", path)
    if placed.entry.kind != Kind.REGULAR:
        raise UsageError(
            f"read {path_text(path)}", f"it is a {Kind(placed.entry.kind).name.lower()} and no regular file"
        )
    return contents_of(tree, path, placed)


def contents_of(tree: SnapshotTree, path: bytes, placed: Placed) -> Iterator[bytes | bytearray]:
    """The contents of a regular file that the tree has at `path`, as `open_file`."""
    if lies_in_image(placed.entry):
        return _image_contents(tree, path, placed.entry)
    return Contents(tree.repository, tree.volume).windows(placed)


def _image_contents(tree: SnapshotTree, path: bytes, entry: Entry) -> Iterator[bytes]:
    """Of a file in the image."""
    assert tree.image_root is not None
    position = 0
    with Tree(tree.image_root) as files:
        for offset, piece in read_pieces(files, path, entry):
            yield from _zeros(offset - position)
            yield piece
            position = offset + len(piece)
    yield from _zeros(entry.size - position)


def _zeros(count: int) -> Iterator[bytes]:
    for start in range(0, count, WINDOW_BYTES):
        yield bytes(min(WINDOW_BYTES, count - start))
