"""Catalog segments that were tampered with: DamageError, or a decode that holds all rules; nothing else."""

from __future__ import annotations

import random
import struct
import subprocess
import sys

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smsnapd.errors import DamageError
from smsnapd.format import segment
from smsnapd.format.catalog import Order, decode_segment, encode_segment
from smsnapd.model import Entry, Extent, Flag, Listing, Segment, Xattr


def seeds() -> list[bytes]:
    """Segments that have something in every column."""
    noise = random.Random(3)
    rich = [
        Entry(b"", 2, header=Extent(0, 0, 512)),
        Entry(
            b"a",
            1,
            0,
            0o644,
            1,
            2,
            700,
            -9,
            8,
            7,
            2,
            0,
            b"",
            (Xattr(b"user.a", b"v"),),
            (),
            Extent(1, 0, 1024),
        ),
        Entry(b"b", 1, int(Flag.ALIAS), links=2, target=b"a", size=700, header=Extent(1, 4096, 512)),
        Entry(b"c", 3, size=3, target=b"x/y", header=Extent(1, 4608, 512)),
        Entry(b"e", 6, rdev=7 << 32 | 1, inode=(1 << 64) - 1, header=Extent(2, 0, 512)),
        Entry(b"s", 1, int(Flag.SPARSE), size=9000, segments=(Segment(512, 512), Segment(8192, 808))),
        Entry(b"t", 0),
    ]
    rich[1] = msgspec.structs.replace(rich[1], content=(Extent(1, 1024, 1024),))
    rich[5] = msgspec.structs.replace(rich[5], header=Extent(3, 0, 512), content=(Extent(3, 512, 1536),))
    plain = [
        Entry(
            b"f%03d" % row,
            1,
            mtime_ns=noise.getrandbits(60),
            ctime_ns=row,
            inode=row,
            header=Extent(row, 0, 512),
        )
        for row in range(12)
    ]
    trees = [
        [Listing(b"", rich), Listing(b"d", plain[:3]), Listing(b"d/e", plain)],
        [Listing(b"x", plain)],
        [],
    ]
    return [encode_segment(tree) for tree in trees]


SEEDS = seeds()
INTERESTING = [0, 1, 2, 8, 9, 0x7F, 0x80, 0xFF]


def try_decode(data: bytes) -> None:
    """Decode; what comes back must be writable again, and the same then."""
    try:
        listings = decode_segment(data, 5, 1 << 20)
    except DamageError:
        return
    order = Order()
    for listing in listings:
        order.check(listing)
    lowered = decode_segment(encode_segment(listings), 0)
    assert lowered == listings


@given(st.sampled_from(SEEDS), st.data())
@settings(max_examples=400, deadline=None)
def test_changed_bytes(seed: bytes, data: st.DataObject) -> None:
    mutated = bytearray(seed)
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(mutated) - 1))
        mutated[position] = data.draw(st.sampled_from(INTERESTING) | st.integers(0, 255))
    try_decode(bytes(mutated))


@pytest.mark.parametrize("seed", SEEDS)
def test_every_truncation(seed: bytes) -> None:
    for end in range(len(seed)):
        with pytest.raises(DamageError):
            decode_segment(seed[:end])


@pytest.mark.parametrize("seed", SEEDS)
def test_every_other_byte_at_its_limits(seed: bytes) -> None:
    for position in range(0, len(seed), 2):
        for value in (0, 1, 0xFF):
            try_decode(seed[:position] + bytes([value]) + seed[position + 1 :])


@given(st.sampled_from(SEEDS), st.data())
@settings(max_examples=150, deadline=None)
def test_pieces_moved_doubled_or_left_out(seed: bytes, data: st.DataObject) -> None:
    start, end = sorted(data.draw(st.tuples(st.integers(0, len(seed)), st.integers(0, len(seed)))))
    place = data.draw(st.integers(0, len(seed)))
    rest = seed[:start] + seed[end:]
    try_decode(
        data.draw(st.sampled_from([rest, rest[:place] + seed[start:end] + rest[place:], seed + seed[start:]]))
    )


@given(st.binary(max_size=200), st.tuples(*[st.integers(0, 3)] * 3))
@settings(max_examples=150, deadline=None)
def test_noise_behind_a_good_head(noise: bytes, counts: tuple[int, int, int]) -> None:
    try_decode(struct.pack("<4sB3xIII", b"SMCT", 1, *counts) + noise)


def repeated(value: int) -> bytes:
    """A column of one value, however many: it takes 10 bytes."""
    return struct.pack("<BBq", 0, 0, value)


def bomb(entries: int, extents: int, segments: int = 0, *, chunks_rise: bool = False) -> bytes:
    """A segment of few bytes that says it has very much: all columns have width 0."""
    names = b"".join(b"%04d" % row for row in range(entries))
    return b"".join(
        [
            struct.pack("<4sB3xIII", b"SMCT", 1, 1, entries, 0),
            repeated(1) + b"d" + repeated(entries),
            repeated(1) + repeated(8 if segments else 0) + repeated(4) + names,
            repeated(0) * 10,
            repeated(0) + repeated(segments) + repeated(0) + repeated(1 if segments else 0),
            repeated(extents) + struct.pack("<BBq", int(chunks_rise), 0, int(chunks_rise)),
            repeated(0) + repeated(1) + repeated(0),
        ]
    )


BOMBS = {
    "too many extents": (bomb(2, 1 << 40), b"damage"),
    "a sum of extents beyond 2^64": (bomb(2, 1 << 62), b"damage"),
    "negative extents": (bomb(2, -1), b"damage"),
    "too many segments": (bomb(2, 2, 1 << 40), b"damage"),
    "a quarter of the segments that may be": (bomb(1, 2, segment.PIECE_LIMIT // 4), b"damage"),
    "a quarter of the extents that may be": (bomb(1, segment.PIECE_LIMIT // 4, chunks_rise=True), b"1"),
    "one extent too many": (bomb(1, segment.PIECE_LIMIT + 1, chunks_rise=True), b"damage"),
    "few extents of the same form": (bomb(3, 2, chunks_rise=True), b"3"),
}


@pytest.mark.parametrize(("data", "expected"), BOMBS.values(), ids=BOMBS.keys())
def test_bombs_take_bounded_memory(data: bytes, expected: bytes) -> None:
    """A process that may have 256 MiB more than it has at the start gives the right answer."""
    code = (
        "import resource, sys\n"
        "from smsnapd.errors import DamageError\n"
        "from smsnapd.format.catalog import decode_segment\n"
        "data = sys.stdin.buffer.read()\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**28,) * 2)\n"
        "try:\n"
        "    print(sum(len(listing.entries) for listing in decode_segment(data)), end='')\n"
        "except DamageError:\n"
        "    print('damage', end='')\n"
    )
    result = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, timeout=120)
    assert result.returncode == 0, result.stderr.decode()
    assert result.stdout == expected
