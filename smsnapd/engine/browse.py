"""Looking into a recovery point without restoring it: its entries, the contents of one file."""

from __future__ import annotations

from collections.abc import Iterator

from smsnapd.engine.history import History, SnapshotSummary
from smsnapd.engine.placed import find_placed
from smsnapd.engine.reading import Contents
from smsnapd.engine.tree import SnapshotTree
from smsnapd.errors import UsageError
from smsnapd.model import Entry, Kind, join_path, path_text
from smsnapd.repository import Repository


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
) -> Iterator[bytearray]:
    """The contents of a regular file, piece by piece, holes as zeros; fetches what it lies in and no more.

    UsageError if there is no such path, or it is no regular file.
    """
    placed = find_placed(SnapshotTree(repository, history.chain(snapshot.id)), path)
    if placed is None:
        raise _no_such_path("read", path)
    if placed.entry.kind != Kind.REGULAR:
        raise UsageError(
            f"read {path_text(path)}", f"it is a {Kind(placed.entry.kind).name.lower()} and no regular file"
        )
    return Contents(repository, history.volume).windows(placed)
