"""A number stands for one object, whoever else stores the same contents."""

from __future__ import annotations

from smsnapd.engine.chain.catalog import Attachments
from smsnapd.engine.chain.chunktable import ChunkTable
from smsnapd.engine.chain.sealing import Piece
from smsnapd.format.codec import stored_hash
from smsnapd.model import ChunkRef


def sealed_as(data: bytes) -> ChunkRef:
    return ChunkRef(b"n" * 32, b"k" * 16, 1000, len(data), stored_hash(data))


def test_what_goes_with_the_manifest_is_what_its_row_says() -> None:
    table = ChunkTable({}, (), ())
    attached, put = b"one salt" * 100, b"another one" * 100
    number = table.number(Piece(b"n" * 32, 1000, sealed_as(attached), attached))
    table.settle([sealed_as(put)])
    assert table.number(Piece(b"n" * 32, 1000, sealed_as(put))) == number
    attachments = Attachments("manifest")
    row = attachments.add(table[number], table.attached[number])
    assert row.stored_hash == stored_hash(attachments.data()[row.offset : row.offset + row.stored_length])


def test_of_two_objects_the_one_that_was_put_in_the_end_counts() -> None:
    table = ChunkTable({}, (), ())
    mine, theirs = sealed_as(b"mine" * 200), sealed_as(b"theirs" * 200)
    number = table.number(Piece(b"n" * 32, 1000, mine))
    table.settle([theirs])
    assert table[number] == theirs
