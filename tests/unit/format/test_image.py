"""The pieces of an image: cut at fixed offsets, all there, and nothing else in the catalog."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from smsnapd.errors import DamageError
from smsnapd.format.image import Image, piece_name, pieces_of
from smsnapd.model import Entry, Extent, Flag, Kind, Listing

IMAGE = Image(3 * 65536 + 512, "", "", piece=65536)
ROOT = Entry(b"", int(Kind.DIRECTORY))


def piece(number: int, size: int = 65536, flags: int = Flag.SPARSE) -> Entry:
    return Entry(piece_name(number), int(Kind.REGULAR), int(flags), size=size, header=Extent(0, 0, 512))


WHOLE = [ROOT, piece(0), piece(1), piece(2), piece(3, 512)]


def test_pieces_come_in_the_order_of_their_offsets() -> None:
    assert list(IMAGE.pieces()) == [(entry.name, entry.size) for entry in WHOLE[1:]]
    assert [entry.name for entry in pieces_of(IMAGE, iter([Listing(b"", WHOLE)]))] == sorted(
        name for name, _ in IMAGE.pieces()
    )


@dataclass(frozen=True)
class Wrong:
    why: str
    listing: Listing


@pytest.mark.parametrize(
    "wrong",
    [
        Wrong("one is missing", Listing(b"", WHOLE[:-1])),
        Wrong("one is missing in the middle", Listing(b"", WHOLE[:2] + WHOLE[3:])),
        Wrong("one too many", Listing(b"", [*WHOLE, piece(4)])),
        Wrong("too short", Listing(b"", [*WHOLE[:-1], piece(3, 511)])),
        Wrong("not sparse", Listing(b"", [*WHOLE[:-1], piece(3, 512, Flag.NONE)])),
        Wrong("in a directory", Listing(b"d", WHOLE[1:])),
        Wrong("an alias", Listing(b"", [*WHOLE[:-1], piece(3, 512, Flag.SPARSE | Flag.ALIAS)])),
    ],
    ids=lambda wrong: wrong.why,
)
def test_a_catalog_of_other_pieces_is_refused(wrong: Wrong) -> None:
    with pytest.raises(DamageError, match="image"):
        list(pieces_of(IMAGE, iter([wrong.listing])))
