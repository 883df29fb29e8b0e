"""Looking into a recovery point without restoring it: its entries, the contents of one file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from smsnapd.engine.history import History, SnapshotSummary
from smsnapd.engine.selection import select
from smsnapd.engine.tree import SnapshotTree
from smsnapd.errors import UsageError
from smsnapd.format.chunker import split_segments
from smsnapd.model import Entry, Extent, Kind, Segment, data_segments, join_path, path_text
from smsnapd.repository import Repository

HOLE_BYTES = 1024 * 1024


def list_entries(
    repository: Repository, history: History, snapshot: SnapshotSummary, path: bytes, recursive: bool
) -> Iterator[tuple[bytes, Entry]]:
    """A directory's entries, or all below it, or one entry that is no directory; paths and entries.

    UsageError if the snapshot has no such path.
    """
    tree = SnapshotTree(repository, history.chain(snapshot.id))
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


def open_file(
    repository: Repository, history: History, snapshot: SnapshotSummary, path: bytes
) -> Iterator[memoryview]:
    """The contents of a regular file, piece by piece, holes as zeros.

    UsageError if there is no such path, or it is no regular file.
    """
    tree = SnapshotTree(repository, history.chain(snapshot.id))
    selection = select(tree.listings, (path,))
    entry = next(
        (
            entry
            for listing in selection.listings()
            for entry in listing.entries
            if join_path(listing.directory, entry.name) == path
        ),
        None,
    )
    if entry is None:
        raise _no_such_path("read", path)
    if entry.kind != Kind.REGULAR:
        raise UsageError(
            f"read {path_text(path)}", f"it is a {Kind(entry.kind).name.lower()} and no regular file"
        )
    return _contents(tree, entry)


def _contents(tree: SnapshotTree, entry: Entry) -> Iterator[memoryview]:
    opener = tree.opener({extent.chunk for extent in entry.content})
    position = 0
    for extent, pieces in _pieces(entry):
        content = memoryview(opener.open(tree.chunks[extent.chunk]))
        start = extent.offset
        for offset, length in pieces:
            yield from _zeros(offset - position)
            yield content[start : start + length]
            start += length
            position = offset + length
    yield from _zeros(entry.size - position)


def _pieces(entry: Entry) -> Iterator[tuple[Extent, Sequence[Segment]]]:
    """The content extents of a file, each with the pieces of the file that it holds."""
    pieces = split_segments(data_segments(entry), (extent.length for extent in entry.content))
    yield from zip(entry.content, pieces, strict=True)


def _zeros(count: int) -> Iterator[memoryview]:
    zeros = memoryview(bytes(min(max(count, 0), HOLE_BYTES)))
    while count > 0:
        yield zeros[: min(count, HOLE_BYTES)]
        count -= HOLE_BYTES
