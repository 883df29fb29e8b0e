"""Block images: a device is cut into pieces, files of an ordinary catalog (FORMAT.md, section 13)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from smsnapd.errors import DamageError
from smsnapd.format.members import Members
from smsnapd.model import BLOCK, Entry, Flag, Kind, Listing

EXTENSION: Final = "block"
"""What a manifest of an image names in `must_understand`."""

CELL: Final = 64 * 1024
"""Bytes of a cell, the unit in which images are compared; aligned."""

UNIT: Final = 4096
"""Bytes of a unit, that which is stored or, being zero or free, left out; aligned."""

PIECE: Final = 4 * 1024 * 1024 * 1024
"""Bytes of a piece that is written: at worst every other unit is data, and its header has under 9 MB."""

_DIGITS: Final = 10


class Image(NamedTuple):
    """What a manifest says of an image.

    `size` is the device's, and `piece` that of every piece but the last, in bytes. `filesystem` is "ext4" if
    only what that has allocated was read, else "". `uuid` is that of the file system, "" if it has none.
    """

    size: int
    filesystem: str
    uuid: str
    piece: int = PIECE

    def pieces(self) -> Iterator[tuple[bytes, int]]:
        """The name and the size of each piece, in the order of their offsets."""
        for number, start in enumerate(range(0, self.size, self.piece)):
            yield piece_name(number), min(self.piece, self.size - start)


def piece_name(number: int) -> bytes:
    """The name of a piece in the catalog; catalog order is the order of offsets."""
    return b"%0*d" % (_DIGITS, number)


def image_members(image: Image) -> dict[str, object]:
    """The member `image` of a manifest."""
    return image._asdict()


def parse_image(members: Members) -> Image:
    """The image that a manifest's member `image` describes; `DamageError` if there is no such image."""
    image = Image(
        size=members.integer("size", BLOCK),
        filesystem=members.text("filesystem"),
        uuid=members.text("uuid"),
        piece=members.integer("piece", CELL),
    )
    if image.size % BLOCK:
        members.refuse("size", f"a multiple of {BLOCK}")
    if image.filesystem not in ("", "ext4"):
        members.refuse("filesystem", "one that this version knows")
    if image.piece % CELL or -(-image.size // image.piece) >= 10**_DIGITS:
        members.refuse("piece", "a size that images are cut at")
    return image


def pieces_of(image: Image, listings: Iterator[Listing]) -> Iterator[Entry]:
    """The pieces that a catalog holds, in order; `DamageError` unless they are those of `image`."""
    what = "read the catalog of the image"
    expected = image.pieces()
    for directory, entries in listings:
        for entry in entries:
            if not directory and not entry.name:
                continue
            name, size = next(expected, (b"", 0))
            if directory or entry.name != name or not _is_piece(entry, size):
                raise DamageError(what, "it holds something else than the image's pieces")
            yield entry
    if next(expected, None) is not None:
        raise DamageError(what, "a piece of the image is missing")


def _is_piece(entry: Entry, size: int) -> bool:
    return (entry.kind, entry.flags, entry.size) == (Kind.REGULAR, Flag.SPARSE, size)
