"""The files of a mounted image as a layer of a chain: entries without extents, contents in the image."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

from msgspec.structs import replace

from smsnapd.errors import DamageError
from smsnapd.model import Entry, Flag, Kind, Listing, data_bytes, data_segments, join_path, path_text
from smsnapd.volume.scan import Excludes, ScanReport, scan
from smsnapd.volume.tarball.metadata import other_entry, regular_entry
from smsnapd.volume.tarball.sparse import read_segments
from smsnapd.volume.tree import Tree

_PIECE: Final = 4 * 1024 * 1024


def lies_in_image(entry: Entry) -> bool:
    """Whether a file's content is to be read from the image: it has data and no extents."""
    return (
        entry.kind == Kind.REGULAR
        and not entry.content
        and not entry.flags & Flag.ALIAS
        and data_bytes(entry) > 0
    )


def image_listings(root: bytes) -> Iterator[Listing]:
    """Everything in the file system mounted at `root`, complete, in catalog order; sockets left out.

    DamageError for what cannot be read: a file system that is damaged, or one that somebody has made.
    """
    report = ScanReport()
    firsts: dict[int, bytes] = {}
    with Tree(root) as tree:
        for listing in scan(tree, Excludes(), report):
            if report.unreadable:
                raise _damage(*report.unreadable[0])
            entries = [_complete(tree, listing.directory, entry, firsts) for entry in listing.entries]
            yield Listing(listing.directory, entries)
    if report.unreadable:
        raise _damage(*report.unreadable[0])


def read_pieces(tree: Tree, path: bytes, entry: Entry) -> Iterator[tuple[int, bytes]]:
    """The data of a file that lies in the image: offsets and bytes, a few megabytes each.

    DamageError if it cannot be read.
    """
    try:
        descriptor = tree.open_file(path)
    except OSError as error:
        raise _damage(path, error.strerror or str(error)) from error
    try:
        for start, length in data_segments(entry):
            for offset in range(start, start + length, _PIECE):
                size = min(_PIECE, start + length - offset)
                buffer = bytearray(size)
                read_segments(descriptor, ((offset, size),), memoryview(buffer))
                yield offset, bytes(buffer)
    except OSError as error:
        raise _damage(path, error.strerror or str(error)) from error
    finally:
        os.close(descriptor)


def _complete(tree: Tree, directory: bytes, scanned: Entry, firsts: dict[int, bytes]) -> Entry:
    """The entry with its target, attributes and segments; of a further name an alias of the first."""
    path = join_path(directory, scanned.name)
    try:
        if scanned.kind != Kind.DIRECTORY and scanned.links > 1:
            first = firsts.setdefault(scanned.inode, path)
            if first != path:
                return replace(scanned, flags=int(Flag.ALIAS), target=first)
        return _read(tree, directory, scanned)
    except OSError as error:
        raise _damage(path, error.strerror or str(error)) from error


def _read(tree: Tree, directory: bytes, scanned: Entry) -> Entry:
    if scanned.kind == Kind.REGULAR:
        descriptor = tree.open_file(join_path(directory, scanned.name))
        try:
            return regular_entry(scanned, descriptor, os.fstat(descriptor))
        finally:
            os.close(descriptor)
    opened = tree.open_directory(directory)
    entry, refused = other_entry(scanned, opened, scanned.name or b".", tree.device)
    if refused is not None:
        raise refused
    return entry


def _damage(path: bytes, why: str) -> DamageError:
    hint = "the file system in the image is damaged: restore it to a device, and run e2fsck there"
    return DamageError(f"read {path_text(path)} in the image", why, hint)
