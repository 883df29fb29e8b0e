"""What was written to a spool is read from it, in whatever order."""

from __future__ import annotations

import os
import random
from pathlib import Path

import msgspec

from smsnapd.engine.spool import Spool


def test_values_come_back_by_place_and_in_order(tmp_path: Path) -> None:
    rng = random.Random(1)
    values = [rng.randbytes(rng.choice((0, 1, 100, 507, 508, 509, 512, 5000, 300_000))) for _ in range(500)]
    spool = Spool(bytes, tmp_path)
    places = [spool.add(value) for value in values[:300]]
    assert list(spool) == values[:300]
    reader = iter(spool)
    assert next(reader) == values[0]
    places += [spool.add(value) for value in values[300:]]
    order = rng.sample(range(500), 500)
    assert [spool.at(places[row]) for row in order] == [values[row] for row in order]
    assert list(reader) == values[1:]
    assert list(spool) == list(spool) == values
    assert os.listdir(tmp_path) == []
    spool.close()
    spool.close()


def test_values_go_on_as_one_array(tmp_path: Path) -> None:
    rng = random.Random(2)
    values = [rng.randbytes(rng.choice((0, 1, 100, 507, 508, 509, 512, 5000, 300_000))) for _ in range(500)]
    spool = Spool(bytes, tmp_path)
    places = spool.add_all(values)
    assert list(spool) == values
    scattered = rng.sample(range(500), 200)
    for chosen in ([], range(500), range(0, 500, 2), scattered, sorted(scattered), [7, 7, 7, 6]):
        packed = spool.packed([places[row] for row in chosen])
        assert msgspec.msgpack.decode(packed, type=list[bytes]) == [values[row] for row in chosen]
    spool.close()


def test_an_empty_one(tmp_path: Path) -> None:
    spool = Spool(int, tmp_path)
    assert list(spool) == []
    spool.close()
