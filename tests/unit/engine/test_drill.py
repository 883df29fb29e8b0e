"""The drill: what it restores, what it notices, and that it leaves nothing behind."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from smsnapd.engine.history import History
from smsnapd.engine.progress import Progress, Silent
from smsnapd.engine.restore import drill
from smsnapd.engine.restore.drill import DrillReport, DrillRequest, run_drill
from smsnapd.errors import TargetError
from tests.property.protected import VOLUME, At, Protected, fill

root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    place = tmp_path / "scratch"
    place.mkdir()
    return place


def run(
    protected: Protected,
    scratch: Path,
    progress: Progress | None = None,
    files: int | None = None,
    live: bool = True,
) -> DrillReport:
    request = DrillRequest(files, scratch, bytes(protected.root) if live else None, protected.workers)
    with protected.repository() as repository:
        history = History.load(repository, VOLUME)
        snapshot = history.find("latest")
        now_us = snapshot.time_us + 90_000_000
        return run_drill(
            repository, protected.settings, history, snapshot, request, progress or Silent(),
            chance=random.Random(1), now_us=now_us,
        )  # fmt: skip


@pytest.fixture
def filled(protected: Protected) -> Protected:
    fill(protected.root, 40, 3000)
    os.link(protected.root / "directory-1" / "file-1", protected.root / "linked")
    (protected.root / "pointer").symlink_to("nowhere")
    (protected.root / "large").write_bytes(random.Random(2).randbytes(9 << 20))
    protected.backup()
    return protected


def test_everything(filled: Protected, scratch: Path) -> None:
    report = run(filled, scratch)
    assert report.is_ok and report.is_all and report.age_s == 90
    assert (report.restored.files, report.compared) == (42, 7 + 40 + 1 + 3)
    assert report.restored.bytes == 40 * 3000 + (9 << 20)
    assert list(scratch.iterdir()) == []


def test_where_the_volume_is_not(filled: Protected, scratch: Path) -> None:
    report = run(filled, scratch, live=False)
    assert report.is_ok and report.compared_with_volume == 0


def test_what_was_written_to_since_is_not_held_against_it(filled: Protected, scratch: Path) -> None:
    for path in sorted(filled.root.rglob("file-*")):
        path.write_bytes(b"new")
    report = run(filled, scratch)
    assert report.is_ok and report.compared_with_volume <= 51 - 40


def test_a_sample(filled: Protected, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = run(filled, scratch, files=5)
    assert report.is_ok and not report.is_all and report.restored.files == 5
    monkeypatch.setattr(drill, "SAMPLE_BYTES", 1)
    assert run(filled, scratch, files=5).restored.files == 1


def tamper(scratch: Path, change: Callable[[Path], object]) -> Progress:
    """Change what was restored before it is compared."""
    return At(compare=lambda: change(next(scratch.iterdir())))


def same_size(place: Path) -> None:
    path = place / "directory-1" / "file-1"
    before = path.stat()
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def unlinked(place: Path) -> None:
    (place / "linked").unlink()
    (place / "linked").write_bytes((place / "directory-1" / "file-1").read_bytes())


@pytest.mark.parametrize(
    ("change", "path", "word"),
    [
        (same_size, b"directory-1/file-1", "content"),
        (lambda place: (place / "large").chmod(0o600), b"large", "mode"),
        (lambda place: os.utime(place / "large"), b"large", "mtime"),
        (lambda place: (place / "pointer").unlink(), b"pointer", "missing"),
        (lambda place: (place / "more").touch(), b"more", "extra"),
        (unlinked, b"directory-1/file-1", "links"),
        pytest.param(lambda place: os.chown(place / "large", 7, 7), b"large", "owner", marks=root),
    ],
)
@pytest.mark.parametrize("live", [False, True])
def test_what_did_not_come_back_is_noticed(
    filled: Protected, scratch: Path, change: Callable[[Path], object], path: bytes, word: str, live: bool
) -> None:
    report = run(filled, scratch, tamper(scratch, change), live=live)
    assert not report.is_ok
    assert (path, word) in {(item.path, one) for item in report.differences for one in item.differs}
    assert list(scratch.iterdir()) == []


def test_interrupted_it_leaves_nothing(filled: Protected, scratch: Path) -> None:
    def interrupt(place: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(filled, scratch, tamper(scratch, interrupt))
    assert list(scratch.iterdir()) == []


def test_too_little_room(filled: Protected, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drill, "_SPARE_BYTES", 1 << 60)
    with pytest.raises(TargetError, match="--scratch"):
        run(filled, scratch)
    with pytest.raises(TargetError, match="No such file"):
        run(filled, scratch / "none")
