"""The map of an image's cells, to pieces and back."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from smsnapd.engine.image.cellmap import CellMap, fill
from smsnapd.engine.trees.fold import without_lost_aliases
from smsnapd.format.catalog import decode_segment, encode_segment
from smsnapd.format.image import CELL, UNIT, Image, pieces_of
from smsnapd.model import Entry, Extent, Flag, Kind, Listing, Segment
from smsnapd.volume.block import masks
from smsnapd.volume.block.cells import data_length, runs

SIZE = 40 * CELL + 3 * UNIT + 512


def filled(cells: CellMap, seed: int) -> None:
    """Some cells with data, placed one behind the other in chunks of some cells, not all of them in order."""
    chance, chunk, offset = random.Random(seed), 0, 0
    for cell in chance.sample(range(41), 30) if seed % 2 else range(41):
        mask = chance.choice((0xFFFF, 1, 0x8000, chance.getrandbits(16)))
        mask &= (1 << -(-(SIZE - cell * CELL) // UNIT)) - 1
        if not mask:
            continue
        cells.put(cell, mask, bytes([cell + 1]) * 16)
        offset = cells.place(cell, chunk, offset)
        if offset > 5 * CELL:
            chunk, offset = chunk + 1, 0


@pytest.mark.parametrize("seed", range(20))
def test_pieces_tell_a_map_again(tmp_path: Path, seed: int) -> None:
    image = Image(SIZE, "ext4", "", 16 * CELL)
    cells, again = CellMap(SIZE, tmp_path), CellMap(SIZE, tmp_path)
    filled(cells, seed)
    pieces = list(cells.pieces(image, 5))
    assert [piece.size for piece in pieces] == [16 * CELL, 16 * CELL, 8 * CELL + 3 * UNIT + 512]
    root = Entry(b"", int(Kind.DIRECTORY), header=Extent(0, 0, 512))
    whole = [root, *(_with_header(piece) for piece in pieces)]
    listings = decode_segment(encode_segment([Listing(b"", whole)]))  # all rules of a catalog hold
    taken = fill(again, image, pieces_of(image, iter(listings)))
    assert not taken.left_out
    for cell in range(cells.cells):
        assert again.masks[cell] == cells.masks[cell]
        if cells.masks[cell]:
            assert again.chunk(cell) == cells.chunk(cell)
    assert sum(taken.used.values()) == sum(cells.length(cell) for cell in range(cells.cells))
    cells.close()
    again.close()


def _with_header(piece: Entry) -> Entry:
    return Entry(
        *(getattr(piece, name) for name in piece.__struct_fields__[:15]), Extent(0, 0, 512), piece.content
    )


def test_a_cell_that_is_not_whole_is_left_out(tmp_path: Path) -> None:
    image = Image(3 * CELL, "", "")
    segments = (Segment(0, CELL), Segment(CELL + 512, UNIT), Segment(2 * CELL, CELL))
    content = (Extent(0, 0, CELL // 2), Extent(1, 0, CELL // 2), Extent(2, 0, UNIT), Extent(3, 0, CELL))
    piece = Entry(b"0000000000", int(Kind.REGULAR), size=3 * CELL, segments=segments, content=content)
    cells = CellMap(3 * CELL, tmp_path)
    taken = fill(cells, image, [piece])
    assert taken.left_out == [0, 1] and cells.masks[2] == 0xFFFF and cells.chunk(2) == 3
    cells.close()


def test_what_is_read_is_what_is_written() -> None:
    assert (masks.CELL, masks.UNIT) == (CELL, UNIT)


def test_runs_are_the_bits_of_a_mask() -> None:
    chance = random.Random(1)
    for mask in (0, 1, 0x8000, 0xFFFF, *(chance.getrandbits(16) for _ in range(500))):
        assert sum(1 << unit for start, end in runs(mask) for unit in range(start, end)) == mask


def test_the_last_unit_may_be_short() -> None:
    assert data_length(1, 0b11, CELL + UNIT + 512) == UNIT + 512
    assert data_length(1, 0b01, CELL + UNIT + 512) == UNIT


def test_a_name_that_was_left_behind_by_a_live_image_is_left_out() -> None:
    def entry(name: bytes, inode: int, links: int = 2, **more: Any) -> Entry:
        return Entry(name, int(Kind.REGULAR), links=links, inode=inode, header=Extent(0, 0, 512), **more)

    alias = int(Flag.ALIAS)
    tree = [
        entry(b"a", 1), entry(b"b", 1, flags=alias, target=b"a"),
        entry(b"c", 2, links=1), entry(b"d", 3, flags=alias, target=b"c"),
        entry(b"e", 1, flags=alias, target=b"gone"), entry(b"f", 4, flags=alias, target=b"a"),
    ]  # fmt: skip
    (listing,) = without_lost_aliases([Listing(b"", tree)])
    assert [one.name for one in listing.entries] == [b"a", b"b", b"c"]
