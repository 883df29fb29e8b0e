"""Packs and ranges: sizes stay within bounds, cuts depend on paths and offsets, not on what lies before."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from typing import TypeVar

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from smsnapd.format import chunker
from smsnapd.format.chunker import PACK_MAXIMUM, PACK_MINIMUM, Packer, cut_ranges, split_segments
from smsnapd.model import CHUNK_TARGET, Segment

KEY = bytes(range(32))
MIB = 1024 * 1024
Item = tuple[bytes, int, tuple[bytes, int]]
T = TypeVar("T")


def corpus(count: int, seed: int = 1, largest: int = MIB) -> list[Item]:
    noise = random.Random(seed)
    rows = [(b"d/%06d" % row, 512 * noise.randrange(1, largest // 512)) for row in range(count)]
    return [(path, size, (path, size)) for path, size in rows]


def plan_packs(items: Iterable[tuple[bytes, int, T]], key: bytes) -> Iterator[list[T]]:
    packer: Packer[T] = Packer(key)
    for item in items:
        yield from packer.add(*item)
    yield from filter(None, [packer.take()])


def packs(items: list[Item], key: bytes = KEY) -> list[tuple[tuple[bytes, int], ...]]:
    return [tuple(pack) for pack in plan_packs(items, key)]


def sizes(cut: list[tuple[tuple[bytes, int], ...]]) -> list[int]:
    return [sum(size for _, size in pack) for pack in cut]


@pytest.mark.parametrize("largest", [4096, MIB, 8 * MIB])
def test_packs_hold_everything_in_order_within_bounds(largest: int) -> None:
    items = corpus(200 * MIB // largest, largest=largest)
    cut = packs(items)
    assert [row for pack in cut for row in pack] == [item[2] for item in items]
    assert all(size >= PACK_MINIMUM for size in sizes(cut)[:-1])
    assert all(size <= PACK_MAXIMUM for size in sizes(cut))


def test_packs_are_about_8_mib_on_average() -> None:
    cut = sizes(packs(corpus(8000, largest=256 * 1024)))
    assert 6 * MIB < sum(cut) / len(cut) < 11 * MIB


def test_a_file_added_or_gone_changes_few_packs() -> None:
    items = corpus(4000, largest=256 * 1024)
    before = set(packs(items))
    for changed in (
        items[:700] + items[701:],
        [*items[:700], (b"d/000699x", 90_112, (b"", 0)), *items[700:]],
    ):
        after = packs(changed)
        assert len(after) > 30
        assert len([pack for pack in after if pack not in before]) <= 4


def test_boundaries_are_secret() -> None:
    items = corpus(2000)
    assert packs(items) != packs(items, bytes(32))
    assert packs(items) == packs(items)


def test_the_rule_is_that_of_the_format() -> None:
    """The first 8 bytes, little-endian, of the keyed hash over 2^64 against the bytes over 8 MiB."""
    items = corpus(300)
    for path, size, _ in items:
        number = int.from_bytes(blake3(path, key=KEY).digest()[:8], "little")
        ends = number / 2**64 < size / CHUNK_TARGET
        filler = (b"filler", PACK_MINIMUM - 512, (b"", 0))
        first = next(iter(plan_packs([filler, (path, size, (path, size)), filler], KEY)))
        if not chunker._is_boundary(b"filler", filler[1], KEY):
            assert (len(first) == 2) == ends


def test_paths_are_not_hashed_below_the_minimum(monkeypatch: pytest.MonkeyPatch) -> None:
    def unexpected(path: bytes, key: bytes) -> None:
        raise AssertionError(path)

    monkeypatch.setattr(chunker, "blake3", unexpected)
    small = [(b"f%d" % row, 4096, row) for row in range(PACK_MINIMUM // 4096 - 1)]
    assert list(plan_packs(small, KEY)) == [list(range(len(small)))]


def test_packs_are_planned_lazily() -> None:
    taken = []

    def items() -> Iterator[tuple[bytes, int, int]]:
        for row in range(1000):
            taken.append(row)
            yield b"f%d" % row, MIB, row

    first = next(plan_packs(items(), KEY))
    assert len(taken) <= len(first) + 1 <= 17


def test_an_item_above_the_maximum_has_a_pack_of_its_own() -> None:
    items = [(b"a", 4096, b"a"), (b"b", 20 * MIB, b"b"), (b"c", 4096, b"c")]
    assert list(plan_packs(items, KEY)) == [[b"a"], [b"b"], [b"c"]]


def test_no_items_no_packs() -> None:
    assert list(plan_packs([], KEY)) == []


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (1, [(0, 1)]),
        (CHUNK_TARGET, [(0, CHUNK_TARGET)]),
        (CHUNK_TARGET + 1, [(0, CHUNK_TARGET), (CHUNK_TARGET, CHUNK_TARGET + 1)]),
    ],
)
def test_files_are_cut_at_fixed_offsets(size: int, expected: list[tuple[int, int]]) -> None:
    assert cut_ranges(size, [Segment(0, size)]) == expected


def test_a_file_without_data_has_no_ranges() -> None:
    assert cut_ranges(0, []) == []
    assert cut_ranges(100 * CHUNK_TARGET, []) == []


@given(
    st.lists(st.tuples(st.integers(0, 3 * CHUNK_TARGET), st.integers(1, 3 * CHUNK_TARGET)), max_size=6),
    st.integers(0, 2 * CHUNK_TARGET),
)
@settings(deadline=None)
def test_ranges_hold_all_data_and_none_is_all_hole(rows: list[tuple[int, int]], tail: int) -> None:
    segments, position = [], 0
    for hole, data in rows:
        segments.append(Segment(position + hole, data))
        position += hole + data
    size = position + tail
    ranges = cut_ranges(size, segments)
    assert ranges == sorted(set(ranges))
    assert all(start % CHUNK_TARGET == 0 and end == min(size, start + CHUNK_TARGET) for start, end in ranges)
    pieces = list(split_segments(segments, [data_between(segments, start, end) for start, end in ranges]))
    assert all(pieces)
    assert all(
        start <= piece.offset and sum(piece) <= end
        for (start, end), part in zip(ranges, pieces, strict=True)
        for piece in part
    )
    assert joined([piece for part in pieces for piece in part]) == joined(segments)


def joined(pieces: list[Segment]) -> list[Segment]:
    """`pieces` with those that touch made one."""
    out: list[Segment] = []
    for piece in pieces:
        if out and sum(out[-1]) == piece.offset:
            out[-1] = Segment(out[-1].offset, out[-1].length + piece.length)
        else:
            out.append(piece)
    return out


def data_between(segments: list[Segment], start: int, end: int) -> int:
    return sum(max(0, min(end, sum(segment)) - max(start, segment.offset)) for segment in segments)


def test_extents_of_any_length_hold_the_data_in_order_and_padding_is_none_of_it() -> None:
    segments = [Segment(0, 1024), Segment(8192, 1300)]
    assert list(split_segments(segments, [512, 1024, 1024])) == [
        [Segment(0, 512)],
        [Segment(512, 512), Segment(8192, 512)],
        [Segment(8704, 788)],
    ]
    assert list(split_segments(segments, [2560])) == [segments]
    assert list(split_segments([], [])) == []
