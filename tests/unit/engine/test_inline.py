"""What is stored by the run itself, and what by worker processes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from smsnapd.engine.backup import snapshot
from smsnapd.engine.backup.storing import StoreTask
from smsnapd.engine.pool import Pool
from tests.property.protected import Protected, comes_back

MIB = 1024 * 1024


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many processes each pool that stores began with."""
    counts: list[int] = []
    begin = Pool.__init__

    def counted(self: Pool, task: object, workers: int) -> None:  # type: ignore[type-arg]
        if isinstance(task, StoreTask):
            counts.append(workers)
        begin(self, task, workers)  # type: ignore[arg-type]

    monkeypatch.setattr(Pool, "__init__", counted)
    return counts


def change_one_byte(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\0")


def test_one_byte_of_a_large_file_needs_no_processes(on_disk: Protected, started: list[int]) -> None:
    large = on_disk.root / "large"
    large.write_bytes(random.Random(1).randbytes(50 * MIB + 12345))
    on_disk.backup()
    assert started == [2]
    change_one_byte(large)
    outcome = on_disk.backup()
    assert started == [2, 0]
    assert outcome.new_bytes < 9 * MIB
    comes_back(on_disk)


def test_another_large_file_of_that_name_does(on_disk: Protected, started: list[int]) -> None:
    large = on_disk.root / "large"
    large.write_bytes(random.Random(1).randbytes(50 * MIB))
    on_disk.backup()
    other = on_disk.root / "other"
    other.write_bytes(random.Random(2).randbytes(50 * MIB))
    other.rename(large)
    on_disk.backup()
    assert started == [2, 2]
    comes_back(on_disk)


def test_so_does_very_much_to_compare(
    on_disk: Protected, started: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "INLINE_COMPARED", 40 * MIB)
    large = on_disk.root / "large"
    large.write_bytes(random.Random(1).randbytes(50 * MIB))
    on_disk.backup()
    change_one_byte(large)
    on_disk.backup()
    assert started == [2, 2]
    comes_back(on_disk)
