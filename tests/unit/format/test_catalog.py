"""Catalog segments: everything comes back, nothing wrong is read or written, and segments are in order."""

from __future__ import annotations

import dataclasses
import random
import struct
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from smsnapd.errors import DamageError, SmsnapError
from smsnapd.format import catalog, segment
from smsnapd.format.catalog import CatalogWriter, Order, OversizeError, decode_segment, encode_segment
from smsnapd.format.columns import (
    MalformedError,
    Reader,
    decode_ints,
    decode_strings,
    encode_ints,
    encode_strings,
)
from smsnapd.format.segment import Columns, join_columns, parse_columns
from smsnapd.model import Entry, Extent, Flag, Kind, Listing, Segment, Xattr, directory_key

I64 = (-(1 << 63), (1 << 63) - 1)
U64 = (0, (1 << 64) - 1)
HEADER = Extent(0, 0, 512)

names = st.binary(min_size=1, max_size=12).filter(
    lambda name: name not in (b".", b"..") and b"/" not in name and b"\0" not in name
)
paths = st.lists(names, min_size=1, max_size=4).map(b"/".join)
times = st.integers(*I64)
extents = st.builds(
    lambda chunk, start, blocks: Extent(chunk, start * 512, blocks * 512),
    st.integers(0, (1 << 31)),
    st.integers(0, 60_000),
    st.integers(1, 5_000),
)
xattrs = st.dictionaries(
    st.binary(min_size=1, max_size=9).filter(lambda name: b"\0" not in name),
    st.binary(max_size=40),
    max_size=3,
).map(lambda pairs: tuple(Xattr(name, value) for name, value in sorted(pairs.items())))
common = {
    "mode": st.integers(0, 0o7777),
    "uid": st.integers(0, (1 << 32) - 1),
    "gid": st.sampled_from([0, 1000, (1 << 32) - 1]),
    "mtime_ns": times,
    "ctime_ns": times,
    "inode": st.integers(*U64),
    "links": st.integers(0, (1 << 63) - 1),
    "rdev": st.integers(*U64),
    "xattrs": xattrs,
    "header": extents,
}
marks = st.sampled_from([0, Flag.UNSETTLED, Flag.CHANGED, Flag.UNSETTLED | Flag.CHANGED]).map(int)


@st.composite
def files(draw: st.DrawFn) -> dict[str, Any]:
    content = tuple(draw(st.lists(extents, max_size=3)))
    total = sum(extent.length for extent in content)
    return {"kind": 1, "content": content, "size": total - draw(st.integers(0, 511)) if content else 0}


@st.composite
def sparse_files(draw: st.DrawFn) -> dict[str, Any]:
    segments, position = [], 0
    for hole, data in draw(st.lists(st.tuples(st.integers(0, 1 << 40), st.integers(1, 90)), max_size=4)):
        segments.append(Segment(position + hole * 512, data * 512))
        position = sum(segments[-1])
    size = position + draw(st.integers(0, 1 << 40))
    if segments and size == position:
        short = draw(st.integers(0, 511))
        size -= short
        segments[-1] = segments[-1]._replace(length=segments[-1].length - short)
    blocks = -(-sum(piece.length for piece in segments) // 512)
    content = (Extent(draw(st.integers(0, 9)), 512, blocks * 512),) if blocks else ()
    flags = int(Flag.SPARSE) | draw(marks)
    return {"kind": 1, "flags": flags, "size": size, "segments": tuple(segments), "content": content}


def aliases(kind: int) -> st.SearchStrategy[dict[str, Any]]:
    sized = kind in (Kind.REGULAR, Kind.SYMLINK)
    return st.fixed_dictionaries(
        {
            "kind": st.just(kind),
            "flags": st.just(int(Flag.ALIAS)),
            "target": paths,
            "size": st.integers(0, (1 << 63) - 1) if sized else st.just(0),
        }
    )


symlinks = st.binary(max_size=30).map(lambda target: target.replace(b"\0", b"/"))
kinds = st.one_of(
    files(),
    sparse_files(),
    st.sampled_from([1, 3, 4, 5, 6]).flatmap(aliases),
    symlinks.map(lambda target: {"kind": 3, "target": target, "size": len(target)}),
    st.sampled_from([2, 4, 5, 6]).map(lambda kind: {"kind": kind}),
)
entries = st.one_of(
    st.builds(
        lambda shared, flags, own: {"flags": flags, **shared, **own},
        st.fixed_dictionaries(common),
        marks,
        kinds,
    ),
    st.just({"kind": 0}),
)


@st.composite
def listings(draw: st.DrawFn) -> list[Listing]:
    out = []
    for directory in sorted(draw(st.sets(st.one_of(st.just(b""), paths), max_size=5)), key=directory_key):
        rows = draw(st.dictionaries(names, entries, min_size=1, max_size=5))
        members = [Entry(name=name, **rows[name]) for name in sorted(rows)]
        if not directory and draw(st.booleans()):
            members.insert(0, Entry(b"", 2, header=HEADER))
        out.append(Listing(directory, members))
    return out


@given(listings())
@settings(max_examples=60, deadline=None)
def test_everything_comes_back(tree: list[Listing]) -> None:
    assert decode_segment(encode_segment(tree)) == tree


@given(st.data(), st.sampled_from([I64, U64, (0, 6), (1, 1 << 40)]))
@settings(max_examples=100, deadline=None)
def test_int_columns_round_trip(data: st.DataObject, bounds: tuple[int, int]) -> None:
    values = data.draw(st.lists(st.integers(*bounds), max_size=50))
    beside = data.draw(st.none() | st.lists(st.integers(*I64), min_size=len(values), max_size=len(values)))
    reader = Reader(encode_ints(values, *bounds, beside))
    assert decode_ints(reader, len(values), *bounds, beside) == values
    assert reader.left == 0


@pytest.mark.parametrize("encoding", [0, 1, 2])
def test_sums_of_a_column_are_modulo_2_64(encoding: int) -> None:
    column = struct.pack("<BBq", encoding, 8, -1) + bytes(8) + bytes([1]) + b"\xff" * 7
    # Two numbers, planes of two bytes each, and the base -1 on top.
    numbers = [int.from_bytes(column[10 + row :: 2], "little") - 1 for row in range(2)]
    first, second = numbers
    expected = {0: [first, second], 1: [first, first + second], 2: [first + 7, second + (1 << 63) - 1]}[
        encoding
    ]
    wrapped = [(value + (1 << 63)) % (1 << 64) - (1 << 63) for value in expected]
    assert decode_ints(Reader(column), 2, *I64, [7, (1 << 63) - 1]) == wrapped


def test_values_far_apart_are_stored_as_differences_too() -> None:
    beside = [I64[0], I64[1]] * 3000
    values = [I64[1], I64[0]] * 3000
    assert decode_ints(Reader(encode_ints(values, *I64, beside)), 6000, *I64, beside) == values


def test_encodings_follow_the_data() -> None:
    rising = [1 << 40 | row * 4096 for row in range(5000)]
    noise = random.Random(1)
    times = [noise.getrandbits(60) for _ in range(5000)]
    assert encode_ints(rising, *I64)[0] == 1
    assert encode_ints(times, *I64)[0] == 0
    assert encode_ints([time + 40 for time in times], *I64, times) == struct.pack("<BBq", 2, 0, 40)


def test_bytes_columns_round_trip() -> None:
    strings = [b"", b"a", b"\xff\0/", b"x" * 300, b""]
    assert decode_strings(Reader(encode_strings(strings)), 5) == strings


def test_numbers_out_of_range_are_refused_in_both_directions() -> None:
    with pytest.raises(MalformedError):
        encode_ints([1, 7], 0, 6)
    with pytest.raises(MalformedError):
        decode_ints(Reader(encode_ints([1, 7], 0, 9)), 2, 0, 6)


def test_xattrs_are_sorted_and_shared() -> None:
    one = (Xattr(b"user.b", b"2"), Xattr(b"user.a", b"1"))
    members = [file(b"f%02d" % row, xattrs=one) for row in range(50)]
    data = encode_segment([Listing(b"", members)])
    assert data.count(b"user.a") == 1
    assert all(entry.xattrs == one[::-1] for entry in decode_segment(data)[0].entries)


def test_a_tombstone_keeps_its_name_alone() -> None:
    odd = Entry(b"gone", 0, 15, 0o644, 1, 2, 3, 4, 5, 6, 7, 8, b"t", (), (), HEADER, (HEADER,), b"digest")
    assert decode_segment(encode_segment([Listing(b"d", [odd])])) == [Listing(b"d", [Entry(b"gone", 0)])]


def test_digests_are_left_out() -> None:
    ((entry,),) = (
        item.entries for item in decode_segment(encode_segment([Listing(b"", [file(digest=b"x")])]))
    )
    assert entry == file()


def test_chunk_numbers_are_moved_up_and_bounded() -> None:
    tree = [Listing(b"", [file(header=Extent(6, 512, 512), content=())])]
    assert decode_segment(encode_segment(tree), 100, 7)[0].entries[0].header == Extent(106, 512, 512)
    with pytest.raises(DamageError):
        decode_segment(encode_segment(tree), 100, 6)


def test_an_extent_ends_within_its_chunk() -> None:
    tree = [Listing(b"", [file(header=Extent(1, 512, 512), content=())])]
    assert decode_segment(encode_segment(tree), 0, 2, [512, 1024]) == tree
    with pytest.raises(DamageError, match="beyond the end of its chunk"):
        decode_segment(encode_segment(tree), 0, 2, [2048, 512])


def test_chunks_get_rows_in_order_of_first_use() -> None:
    rows = {7: 0}
    members = [
        file(name, header=Extent(chunk, 0, 512)) for name, chunk in ((b"a", 900), (b"b", 7), (b"c", 30))
    ]
    data = encode_segment([Listing(b"", members)], rows)
    assert rows == {7: 0, 900: 1, 30: 2}
    assert [entry.header.chunk for entry in decode_segment(data)[0].entries if entry.header] == [1, 0, 2]


def test_a_directory_given_in_parts_is_one() -> None:
    parts = [Listing(b"d", [file(b"a")]), Listing(b"d", []), Listing(b"d", [file(b"b")]), Listing(b"e", [])]
    assert decode_segment(encode_segment(parts)) == [Listing(b"d", [file(b"a"), file(b"b")])]


def test_a_packed_segment_compresses_well() -> None:
    noise, offset, members = random.Random(2), 0, []
    for row in range(4000):
        blocks = noise.randrange(1, 9)
        content = (Extent(0, offset + 512, blocks * 512),)
        time = 1_760_000_000_000_000_000 + noise.getrandbits(33)
        members.append(
            file(
                b"module_%04d.py" % row, header=Extent(0, offset, 512), content=content, size=blocks * 512 - 9
            )
        )
        members[-1] = msgspec.structs.replace(
            members[-1], mtime_ns=time, ctime_ns=time + 900, inode=7000 + row
        )
        offset += 512 + blocks * 512
    tree = [Listing(b"", members)]
    data = encode_segment([Listing(b"", members[:3000])])
    assert len(zstandard.ZstdCompressor(level=3).compress(data)) < 8 * 3000
    assert decode_segment(encode_segment(tree)) == tree


def file(name: bytes = b"f", **changes: Any) -> Entry:
    return msgspec.structs.replace(Entry(name, 1, 0, 0o644, links=1, header=HEADER), **changes)


def alias(**changes: Any) -> Entry:
    return file(flags=1, target=b"first", **changes)


CONTENT = (Extent(0, 512, 1024),)
REFUSED = {
    "a name with a slash": [Listing(b"", [file(b"a/b")])],
    "a name with a NUL": [Listing(b"", [file(b"a\0")])],
    "the name .": [Listing(b"", [file(b".")])],
    "the name ..": [Listing(b"a", [file(b"..")])],
    "no name": [Listing(b"a", [file(b"")])],
    "a root that is a file": [Listing(b"", [file(b"")])],
    "names that fall": [Listing(b"", [file(b"b"), file(b"a")])],
    "a name twice": [Listing(b"", [file(b"a"), file(b"a")])],
    "a name twice in parts": [Listing(b"d", [file(b"a")]), Listing(b"d", [file(b"a")])],
    "directories that fall": [Listing(b"b", [file()]), Listing(b"a", [file()])],
    "directories in order of bytes": [Listing(b"a.b", [file()]), Listing(b"a/b", [file()])],
    "a directory that ends in a slash": [Listing(b"a/", [file()])],
    "a directory that begins with a slash": [Listing(b"/a", [file()])],
    "a directory with ..": [Listing(b"a/../b", [file()])],
    "a directory with a NUL": [Listing(b"a\0b", [file()])],
    "an unknown kind": [Listing(b"", [file(kind=7)])],
    "an unknown flag": [Listing(b"", [file(flags=16)])],
    "a mode of 13 bits": [Listing(b"", [file(mode=1 << 12)])],
    "a negative uid": [Listing(b"", [file(uid=-1)])],
    "a uid of 33 bits": [Listing(b"", [file(uid=1 << 32)])],
    "a time of 65 bits": [Listing(b"", [file(mtime_ns=1 << 63)])],
    "a negative inode": [Listing(b"", [file(inode=-1)])],
    "no header": [Listing(b"", [file(header=None)])],
    "no header but content": [Listing(b"", [file(header=None, content=CONTENT, size=1024)])],
    "an unaligned offset": [Listing(b"", [file(header=Extent(0, 100, 512))])],
    "an unaligned length": [Listing(b"", [file(header=Extent(0, 0, 100))])],
    "an empty extent": [Listing(b"", [file(header=Extent(0, 0, 0))])],
    "a negative offset": [Listing(b"", [file(header=Extent(0, -512, 512))])],
    "a negative chunk": [Listing(b"", [file(header=Extent(-1, 0, 512))])],
    "an extent beyond a chunk": [Listing(b"", [file(header=Extent(0, 32 << 20, 512))])],
    "a size above the content": [Listing(b"", [file(content=CONTENT, size=1025)])],
    "a size far below the content": [Listing(b"", [file(content=CONTENT, size=512)])],
    "a size without content": [Listing(b"", [file(size=1)])],
    "a negative size": [Listing(b"", [file(size=-1)])],
    "a directory with a size": [Listing(b"", [file(kind=2, size=4096)])],
    "a directory with content": [Listing(b"", [file(kind=2, content=CONTENT, size=1024)])],
    "an alias with content": [Listing(b"", [alias(content=CONTENT, size=1024)])],
    "an alias of a directory": [Listing(b"", [alias(kind=2)])],
    "an alias of nothing": [Listing(b"", [file(flags=1)])],
    "an alias of ..": [Listing(b"", [file(flags=1, target=b"../x")])],
    "a file with a target": [Listing(b"", [file(target=b"x")])],
    "a symlink to a NUL": [Listing(b"", [file(kind=3, target=b"a\0", size=2)])],
    "a symlink of another size": [Listing(b"", [file(kind=3, target=b"abc", size=2)])],
    "a sparse symlink": [Listing(b"", [file(kind=3, flags=8)])],
    "segments of a file that is not sparse": [Listing(b"", [file(segments=(Segment(0, 512),))])],
    "segments without extents": [Listing(b"", [file(flags=8, size=512, segments=(Segment(0, 512),))])],
    "fewer segments than content": [
        Listing(b"", [file(flags=8, size=9000, segments=(Segment(0, 512),), content=CONTENT)])
    ],
    "a FIFO's alias with a size": [Listing(b"", [alias(kind=4, size=1)])],
    "an alias with a negative size": [Listing(b"", [alias(size=-1)])],
    "segments beyond the size": [
        Listing(b"", [file(flags=8, size=512, segments=(Segment(0, 1024),), content=CONTENT)])
    ],
    "segments that overlap": [
        Listing(
            b"", [file(flags=8, size=9000, segments=(Segment(0, 1024), Segment(512, 512)), content=CONTENT)]
        )
    ],
    "an unaligned segment": [
        Listing(b"", [file(flags=8, size=9000, segments=(Segment(100, 1024),), content=CONTENT)])
    ],
    "an unaligned length before the end": [
        Listing(b"", [file(flags=8, size=9000, segments=(Segment(0, 1000),), content=CONTENT)])
    ],
    "an empty segment": [Listing(b"", [file(flags=8, size=512, segments=(Segment(0, 0),))])],
    "an xattr without a name": [Listing(b"", [file(xattrs=(Xattr(b"", b"v"),))])],
}


@pytest.mark.parametrize("tree", REFUSED.values(), ids=REFUSED.keys())
def test_what_no_catalog_may_have_is_not_written(tree: list[Listing]) -> None:
    with pytest.raises(SmsnapError):
        encode_segment(tree)


def changed(change: Callable[[Columns], object]) -> bytes:
    """A good segment, with its columns changed behind the back of the rules."""
    tree = [
        Listing(b"", [Entry(b"", 2, header=HEADER), file(b"a", content=CONTENT, size=1000)]),
        Listing(
            b"d", [file(b"b", xattrs=(Xattr(b"user.x", b"1"),)), file(b"c", kind=3, target=b"t", size=1)]
        ),
    ]
    columns = parse_columns(encode_segment(tree), 1 << 32)
    change(columns)
    return join_columns(columns)


def replacing(column: str, row: int, value: object) -> Callable[[Columns], object]:
    return lambda columns: getattr(columns, column).__setitem__(row, value)


DAMAGED = {
    "a directory with ..": replacing("directories", 1, b".."),
    "directories that fall": replacing("directories", 0, b"e"),
    "more entries than there are": replacing("directory_counts", 0, 3),
    "fewer entries than there are": replacing("directory_counts", 0, 1),
    "a name with a slash": replacing("names", 1, b"/"),
    "a name twice": replacing("names", 3, b"b"),
    "no name": replacing("names", 2, b""),
    "a root that is a tombstone": replacing("kinds", 0, 0),
    "a tombstone with extents": replacing("kinds", 2, 0),
    "a file without extents": replacing("extent_counts", 2, 0),
    "content of a directory": replacing("kinds", 1, 2),
    "an alias without target": replacing("flags", 1, 1),
    "an extent beyond its chunk": replacing("offsets", 4, 32 << 20),
    "slack without content": replacing("slack", 2, 1),
    "slack of a block": replacing("slack", 1, 512),
    "a target of a directory": replacing("targets", 0, b"x"),
    "an xattr set that is cut short": replacing("xattr_sets", 0, b"\5\0user"),
    "an xattr set that is empty": replacing("xattr_sets", 0, b""),
    "xattrs that fall": replacing("xattr_sets", 0, struct.pack("<HcIHcI", 1, b"b", 0, 1, b"a", 0)),
}


@pytest.mark.parametrize("change", DAMAGED.values(), ids=DAMAGED.keys())
def test_what_breaks_a_rule_is_not_read(change: Callable[[Columns], object]) -> None:
    assert decode_segment(changed(lambda columns: None))
    with pytest.raises(DamageError):
        decode_segment(changed(change))


@pytest.mark.parametrize("cut", [0, 3, 19, 20, 21, 60, -1])
def test_a_segment_that_is_cut_short_is_damage(cut: int) -> None:
    with pytest.raises(DamageError):
        decode_segment(changed(lambda columns: None)[:cut])


@pytest.mark.parametrize("offset", [0, 4, 5, 7])
def test_a_segment_of_another_form_is_damage(offset: int) -> None:
    data = bytearray(changed(lambda columns: None))
    data[offset] ^= 2
    with pytest.raises(DamageError):
        decode_segment(bytes(data))


def test_bytes_behind_the_last_column_are_damage() -> None:
    with pytest.raises(DamageError):
        decode_segment(changed(lambda columns: None) + b"\0")


@pytest.mark.parametrize(
    "counts", [(1, 1 << 32, 0), (1, (1 << 20) + 1, 0), (2, 1, 0), (0, 0, 1), (1 << 31, 1 << 31, 1 << 31)]
)
def test_impossible_counts_are_refused_unread(counts: tuple[int, int, int]) -> None:
    head = struct.pack("<4sB3xIII", b"SMCT", 1, *(min(count, (1 << 32) - 1) for count in counts))
    with pytest.raises(DamageError):
        decode_segment(head + bytes(10_000))


@pytest.mark.parametrize("column", ["extent_counts", "piece_counts"])
def test_a_column_of_width_0_cannot_ask_for_gigabytes(column: str) -> None:
    for many in (segment.PIECE_LIMIT + 1, 1 << 62):
        with pytest.raises(DamageError, match="impossible number"):
            decode_segment(changed(replacing(column, 1, many)))


def stream(count: int, per_directory: int) -> list[Listing]:
    out = []
    for start in range(0, count, per_directory):
        rows = range(start, min(count, start + per_directory))
        out.append(Listing(b"d%06d" % start, [file(b"f%06d" % row) for row in rows]))
    return out


def flat(parts: list[Listing]) -> list[tuple[bytes, Entry]]:
    return [(part.directory, entry) for part in parts for entry in part.entries]


@pytest.mark.parametrize("per_directory", [1, 7, 10, 1000])
def test_segments_are_cut_by_entries(per_directory: int) -> None:
    tree = stream(1000, per_directory)
    writer = CatalogWriter(entry_limit=100)
    segments = [part for listing in tree for part in writer.add(listing)]
    assert len(segments) >= 9
    segments += writer.finish()
    decoded = [decode_segment(part) for part in segments]
    assert [sum(len(listing.entries) for listing in part) for part in decoded] == [100] * 10
    assert flat([listing for part in decoded for listing in part]) == flat(tree)
    order = Order()
    for part in decoded:
        for listing in part:
            order.check(listing)


def test_segments_are_cut_by_bytes() -> None:
    big = [file(b"f%02d" % row, kind=3, target=b"t" * 3000, size=3000) for row in range(40)]
    writer = CatalogWriter(byte_limit=20_000)
    segments = writer.add(Listing(b"", big)) + writer.finish()
    assert len(segments) > 6
    assert all(len(part) <= 20_000 for part in segments)
    assert flat([listing for part in segments for listing in decode_segment(part)]) == flat(
        [Listing(b"", big)]
    )


def test_an_entry_above_the_limit_has_a_segment_of_its_own() -> None:
    big = file(b"b", kind=3, target=b"t" * 50_000, size=50_000)
    writer = CatalogWriter(byte_limit=20_000)
    segments = writer.add(Listing(b"", [file(b"a"), big, file(b"c")])) + writer.finish()
    assert [len(decode_segment(part)[0].entries) for part in segments] == [1, 1, 1]


def test_more_extents_than_a_segment_holds_are_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "PIECE_LIMIT", 10)
    many = [file(b"f%d" % row, content=CONTENT * 5, size=5 * 1024) for row in range(4)]
    with pytest.raises(OversizeError):
        encode_segment([Listing(b"", many)])
    writer = CatalogWriter()
    assert len(writer.add(Listing(b"", many)) + writer.finish()) == 4
    writer.add(Listing(b"x", [file(content=CONTENT * 10, size=10_240)]))
    with pytest.raises(OversizeError):
        writer.finish()


def test_a_writer_without_entries_has_no_segments() -> None:
    writer = CatalogWriter()
    assert writer.add(Listing(b"d", [])) == []
    assert writer.finish() == []


@pytest.mark.parametrize(
    "late",
    [
        Listing(b"c", [file(b"z")]),
        Listing(b"d", [file(b"m")]),
        Listing(b"d", [file(b"a"), file(b"z")]),
        Listing(b"", [file(b"z")]),
    ],
)
def test_listings_out_of_order_are_refused(late: Listing) -> None:
    order, writer = Order(), CatalogWriter()
    order.check(Listing(b"d", [file(b"b"), file(b"m")]))
    writer.add(Listing(b"d", [file(b"b"), file(b"m")]))
    order.check(Listing(b"d", []))
    with pytest.raises(DamageError):
        order.check(late)
    with pytest.raises(DamageError):
        writer.add(late)
    order.check(Listing(b"d", [file(b"n")]))
    order.check(Listing(b"d/a", [file(b"a")]))
    order.check(Listing(b"d.a", [file(b"a")]))


def test_columns_are_those_of_the_format_in_its_order() -> None:
    fields = [field.name for field in dataclasses.fields(Columns)]
    assert fields[:5] == ["directories", "directory_counts", "kinds", "flags", "names"]
    assert fields[-5:] == ["extent_counts", "chunks", "offsets", "lengths", "slack"]


def test_the_bytes_are_those_of_the_format() -> None:
    """One segment, spelled out."""

    def ints(value: int) -> bytes:
        return struct.pack("<BBq", 0, 0, value)

    entry = Entry(b"f", 1, 2, 0o644, 1, 2, 700, -5, -5, 9, 1, 0, header=Extent(3, 1024, 512))
    entry = msgspec.structs.replace(entry, content=(Extent(3, 1536, 1024),), xattrs=(Xattr(b"user.a", b"v"),))
    empty = ints(0)
    expected = b"".join(
        [
            b"SMCT\1\0\0\0" + struct.pack("<III", 1, 1, 1),
            ints(1) + b"d" + ints(1) + ints(1) + ints(2) + ints(1) + b"f",
            *map(ints, (0o644, 1, 2, -5, -5, 9, 1, 0)),
            ints(0),
            ints(13) + b"\6\0user.a\1\0\0\0v" + ints(1),
            ints(0) + empty + empty,
            ints(2) + ints(3),
            struct.pack("<BBq", 0, 1, 0) + b"\2\0",
            struct.pack("<BBq", 0, 1, 0) + b"\1\2",
            ints(1024 - 700),
        ]
    )
    assert encode_segment([Listing(b"d", [entry])]) == expected
