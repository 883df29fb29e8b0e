"""The core types: entries, listings, chunks, snapshots. Words as in the architecture.

Paths are `bytes`, relative to the volume's root, `/` between components, the root itself `b""`.
Times are nanoseconds since the epoch unless a name says otherwise. Everything here is immutable.
"""

from __future__ import annotations

import enum
import stat
from typing import Final, NamedTuple

import msgspec

BLOCK: Final = 512
"""Bytes of a tar block; every extent begins and ends at a multiple of it within its chunk."""

CHUNK_TARGET: Final = 8 * 1024 * 1024
"""Bytes of a chunk on average, the size from which a file counts as large, and its cutting step."""


class Kind(enum.IntEnum):
    """What an entry is. The numbers are those of the catalog (FORMAT.md, section 8)."""

    TOMBSTONE = 0
    REGULAR = 1
    DIRECTORY = 2
    SYMLINK = 3
    FIFO = 4
    CHARACTER = 5
    BLOCK = 6


FORMATS: Final = {
    Kind.REGULAR: stat.S_IFREG,
    Kind.DIRECTORY: stat.S_IFDIR,
    Kind.SYMLINK: stat.S_IFLNK,
    Kind.FIFO: stat.S_IFIFO,
    Kind.CHARACTER: stat.S_IFCHR,
    Kind.BLOCK: stat.S_IFBLK,
}
"""The bits of `st_mode` that say what an entry is (inode(7))."""


class Flag(enum.IntFlag):
    """Marks of an entry (FORMAT.md, section 8)."""

    NONE = 0
    ALIAS = 1
    UNSETTLED = 2
    CHANGED = 4
    SPARSE = 8
    ANEW = 16
    """A directory that took the place of what lay there: it removes what lower layers have below its path."""


_SPARSE: Final = int(Flag.SPARSE)  # an enumeration's own `&` takes as long as reading an entry


class Extent(NamedTuple):
    """A piece of a chunk's content: chunk number in some table, offset and length in bytes."""

    chunk: int
    offset: int
    length: int


class Segment(NamedTuple):
    """A stretch of data in a sparse file, in bytes; what lies between segments is a hole."""

    offset: int
    length: int


class Xattr(NamedTuple):
    """One extended attribute, name and value as `getxattr(2)` has them."""

    name: bytes
    value: bytes


class Entry(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One name in a directory, with all metadata and where its bytes lie.

    `kind` and `flags` are plain integers (`Kind`, `Flag`) because millions are made. `size` is that of
    the content in bytes: of a regular file its length, of a symlink that of its target, else 0.
    `rdev` is `major << 32 | minor`. `target` is a symlink's target, or for an alias (a further name of
    an inode) the path of the first name in catalog order. `segments` is the data of a sparse file.
    `header` is None only for tombstones and for entries that are not stored yet. `digest` is local
    (16 bytes of a keyed hash of the content of a small file, empty if unknown) and in no catalog.
    """

    name: bytes
    kind: int
    flags: int = 0
    mode: int = 0
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    inode: int = 0
    links: int = 1
    rdev: int = 0
    target: bytes = b""
    xattrs: tuple[Xattr, ...] = ()
    segments: tuple[Segment, ...] = ()
    header: Extent | None = None
    content: tuple[Extent, ...] = ()
    digest: bytes = b""


class Listing(NamedTuple):
    """Entries of one directory, sorted by name: the currency between scan, state, catalog and restore.

    The root is the entry `b""` of directory `b""`. A stream of listings is in catalog order when
    `directory_key` of its directories rises; one directory may come in several listings in a row.
    """

    directory: bytes
    entries: list[Entry]


class ChunkRef(msgspec.Struct, frozen=True, gc=False):
    """Where a chunk (or catalog segment) lies and how to know it (FORMAT.md, section 7).

    `name_hash` is the keyed hash of its content (32 bytes), `key_id` the data key's id (16 bytes; of
    a catalog segment the writer's), lengths are in bytes, `stored_hash` is the BLAKE3 of the
    sealed object. `manifest` is "" for an object of its own, else the full name of the
    manifest object that it is attached to, at `offset` among the attachments.
    """

    name_hash: bytes
    key_id: bytes
    length: int
    stored_length: int
    stored_hash: bytes
    manifest: str = ""
    offset: int = 0


def data_segments(entry: Entry) -> tuple[Segment, ...]:
    """Where a regular file has data: all of it, or the segments of a sparse one."""
    if entry.flags & _SPARSE:
        return entry.segments
    return (Segment(0, entry.size),) if entry.size else ()


def data_bytes(entry: Entry) -> int:
    """Bytes of data in a regular file, holes not counted."""
    if entry.flags & _SPARSE:
        return sum(segment.length for segment in entry.segments)
    return entry.size


def join_path(directory: bytes, name: bytes) -> bytes:
    """The path of `name` in `directory`, both relative to the root."""
    return directory + b"/" + name if directory else name


def directory_key(directory: bytes) -> bytes:
    """A key under which directories sort component by component (NUL is below every byte of a name)."""
    return directory.replace(b"/", b"\0")


def path_text(path: bytes) -> str:
    """A path for people and JSON (FORMAT.md, section 10): `\\xNN` for what is no plain UTF-8."""
    if not path:
        return "."
    pieces = []
    for character in path.decode("utf-8", "surrogateescape"):
        code = ord(character)
        if 0xDC80 <= code <= 0xDCFF:
            pieces.append(f"\\x{code - 0xDC00:02x}")
        elif code < 0x20 or code == 0x7F or character == "\\" or 0x80 <= code < 0xA0:
            pieces.extend(f"\\x{byte:02x}" for byte in character.encode())
        else:
            pieces.append(character)
    return "".join(pieces)


def path_bytes(text: str) -> bytes:
    """The path that `path_text` made `text` of; a path typed by a person passes unchanged."""
    raw = text.encode("utf-8", "surrogateescape")
    out = bytearray()
    position = 0
    while position < len(raw):
        if raw[position : position + 2] == b"\\x":
            try:
                out.append(int(raw[position + 2 : position + 4], 16))
                position += 4
                continue
            except ValueError:
                pass
        out.append(raw[position])
        position += 1
    path = bytes(out).strip(b"/")
    return b"" if path == b"." else path
