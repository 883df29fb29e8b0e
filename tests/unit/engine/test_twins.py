"""Copies of files share what is stored; what only looks like a copy does not."""

from __future__ import annotations

import os
import random
import shutil

import pytest

from smsnapd.engine.backup.twins import SMALLEST, Twins
from smsnapd.model import CHUNK_TARGET, Entry, Extent, Kind, Segment
from tests.property.protected import Protected, comes_back

REGULAR = int(Kind.REGULAR)
DIGEST = bytes(range(16))


def stored(name: bytes, size: int, chunk: int, digest: bytes = DIGEST) -> Entry:
    length = size + -size % 512
    content = (Extent(chunk, 1536, length),)
    return Entry(name, REGULAR, size=size, header=Extent(chunk, 0, 1536), content=content, digest=digest)


def test_the_latest_of_its_name_and_size_is_found() -> None:
    twins = Twins()
    twins.note(stored(b"a", SMALLEST, 7))
    twins.note(stored(b"a", SMALLEST, 8))
    twins.note(stored(b"a", SMALLEST + 1, 9))
    found = twins.find(Entry(b"a", REGULAR, size=SMALLEST))
    assert found is not None
    assert (found.content, found.digest, found.size) == ((Extent(8, 1536, SMALLEST),), DIGEST, SMALLEST)
    assert twins.find(Entry(b"b", REGULAR, size=SMALLEST)) is None
    assert twins.find(Entry(b"a", REGULAR, size=SMALLEST + 2)) is None
    assert twins.find(Entry(b"a", int(Kind.SYMLINK), size=SMALLEST)) is None


def test_nothing_is_shared_that_is_small_sparse_large_or_without_a_digest() -> None:
    twins = Twins()
    sparse = stored(b"sparse", SMALLEST, 1)
    for entry in (
        stored(b"small", SMALLEST - 1, 1),
        stored(b"none", SMALLEST, 1, digest=b""),
        Entry(
            sparse.name,
            REGULAR,
            size=sparse.size,
            segments=(Segment(0, 512),),
            content=sparse.content,
            digest=DIGEST,
        ),
    ):
        twins.note(entry)
        assert twins.find(Entry(entry.name, REGULAR, size=entry.size)) is None
    assert twins.find(Entry(b"large", REGULAR, size=CHUNK_TARGET)) is None


def test_what_is_remembered_has_a_bound_and_the_oldest_goes_first() -> None:
    twins = Twins(most=10)
    for number in range(100):
        twins.note(stored(b"%d" % number, SMALLEST, number))
    found = [number for number in range(100) if twins.find(Entry(b"%d" % number, REGULAR, size=SMALLEST))]
    assert 10 <= len(found) <= 20
    assert found == list(range(100 - len(found), 100))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_copy_costs_its_headers(on_disk: Protected, workers: int) -> None:
    chance = random.Random(4)
    first = on_disk.root / "a"
    first.mkdir()
    for number in range(60):
        (first / f"data{number}").write_bytes(chance.randbytes(300_000))
    filler = on_disk.root / "b"
    filler.mkdir()
    for number in range(300):
        (filler / f"other{number}").write_bytes(chance.randbytes(300_000))
    shutil.copytree(first, on_disk.root / "c")
    outcome = on_disk.backup(full=True, workers=workers)
    # What hides the lengths of chunks adds 1.3 to 2.3 percent, by chance; the 60 copies would be 17.
    assert outcome.new_bytes < 1.05 * 360 * 300_000
    comes_back(on_disk)
    assert on_disk.check().findings == ()


def test_what_has_the_name_and_size_of_another_has_its_own_content(on_disk: Protected) -> None:
    """Also if it becomes another between two runs."""
    for place in ("a", "b", "c"):
        (on_disk.root / place).mkdir()
        (on_disk.root / place / "same").write_bytes(os.urandom(SMALLEST))
    on_disk.backup(full=True)
    comes_back(on_disk)
    shutil.copy(on_disk.root / "a" / "same", on_disk.root / "d")
    (on_disk.root / "a" / "same").write_bytes(os.urandom(SMALLEST))
    on_disk.backup()
    comes_back(on_disk, "again")
