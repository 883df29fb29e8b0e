"""What a run stores and what not, and the changes that hide from it."""

from __future__ import annotations

import fcntl
import mmap
import os
import random
import struct
import time
import uuid
from pathlib import Path

import pytest

from smsnapd.engine.backup.run import BackupOutcome
from smsnapd.engine.history import History
from smsnapd.errors import SmsnapError
from smsnapd.store import StoreSettings
from tests.property.protected import VOLUME, At, Protected, comes_back, fill

MIB = 1024 * 1024
FIBMAP = 1
pytestmark = [pytest.mark.root, pytest.mark.loop]


@pytest.fixture
def apart(protected: Protected) -> Protected:
    """The same volume; its repository is in memory, so that no `barrier` writes back what is dirty."""
    settings = StoreSettings(f"memory://{uuid.uuid4().hex}")
    return Protected.create(protected.root, protected.state_dir, settings)


def chunks(protected: Protected) -> dict[str, int]:
    """Chunks that are objects of their own, and their sizes."""
    with protected.repository() as repository:
        return {info.name: info.size for info in repository.store.list(f"volumes/{VOLUME}/chunks/")}


def stored(outcome: BackupOutcome) -> int:
    assert outcome.snapshot is not None
    return outcome.snapshot.stored_bytes


# --- what is stored


def test_no_change_is_no_snapshot(protected: Protected) -> None:
    fill(protected.root, 20, 1000)
    time.sleep(0.05)  # so that nothing is unsettled any more
    assert protected.backup().snapshot is not None
    for _ in range(2):
        outcome = protected.backup()
        assert (outcome.snapshot, outcome.changed, outcome.deleted) == (None, 0, 0)
    protected.lose_state()
    assert protected.backup().snapshot is None


def test_a_full_after_a_full_stores_only_the_catalog(protected: Protected) -> None:
    fill(protected.root, 60, 200_000)
    first = protected.backup(attach=False)
    before = chunks(protected)
    (protected.root / "directory-1" / "new").write_bytes(b"new")
    second = protected.backup(full=True, attach=False)
    assert second.snapshot is not None and second.snapshot.kind == "full"
    assert stored(second) < stored(first) // 50
    assert len(chunks(protected)) == len(before) + 1
    comes_back(protected)


def test_a_full_is_complete_in_itself(protected: Protected) -> None:
    """Its chain is itself: every manifest before it may be gone."""
    fill(protected.root, 30, 5000)
    protected.backup()
    (protected.root / "directory-2" / "file-2").write_bytes(b"other")
    protected.backup()
    protected.backup(full=True)
    with protected.repository() as repository:
        history = History.load(repository, VOLUME)
        assert [name.kind for name in history.names] == ["full", "incremental", "full"]
        for name in history.names[:2]:
            record = history.record(name).manifest
            assert not any(ref.manifest for ref in record.chunks) or name.sequence < 3
    comes_back(protected)


def change_below(image: Path, place: Path, data: bytes) -> None:
    """Change a file's first bytes on the disk, as a failing one does; the file system knows nothing of it."""
    with place.open("rb") as file, image.open("r+b") as disk:
        os.fsync(file.fileno())
        block = struct.unpack("i", fcntl.ioctl(file.fileno(), FIBMAP, struct.pack("i", 0)))[0]
        os.pwrite(disk.fileno(), data, block * 4096)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    assert place.read_bytes().startswith(data)


@pytest.mark.parametrize("size", [5000, 9 * MIB])
def test_reread_finds_what_no_time_tells(protected: Protected, ext4: Path, size: int) -> None:
    fill(protected.root, 3, size)
    time.sleep(0.05)
    protected.backup()
    change_below(ext4.with_suffix(".img"), protected.root / "directory-1" / "file-1", b"bad sector")
    assert protected.backup().snapshot is None
    assert protected.backup(full=True, attach=False).changed == 0
    outcome = protected.backup(reread=True)
    assert (outcome.changed, outcome.deleted) == (1, 0)
    comes_back(protected)
    assert protected.backup(reread=True).snapshot is None


def test_a_renamed_directory_stores_headers_alone(protected: Protected) -> None:
    (protected.root / "work").mkdir()
    fill(protected.root / "work", 80, 100_000)
    first = protected.backup()
    time.sleep(0.05)
    protected.backup()
    (protected.root / "work").rename(protected.root / "renamed")
    second = protected.backup()
    assert second.deleted >= 1
    assert stored(second) < 64 * 1024 < stored(first) // 50
    comes_back(protected)


def test_a_renamed_large_file_stores_a_header_alone(protected: Protected) -> None:
    (protected.root / "large").write_bytes(random.Random(2).randbytes(20 * MIB))
    protected.backup()
    time.sleep(0.05)
    protected.backup()
    before = chunks(protected)
    (protected.root / "large").rename(protected.root / "larger")
    assert stored(protected.backup(attach=False)) < 32 * 1024
    assert len(chunks(protected)) == len(before) + 1
    comes_back(protected)


@pytest.mark.parametrize("workers", [0, 2])
def test_one_byte_of_a_large_file_stores_one_chunk(protected: Protected, workers: int) -> None:
    large = protected.root / "large"
    large.write_bytes(random.Random(3).randbytes(40 * MIB + 77))
    protected.backup(workers=workers)
    before = chunks(protected)
    assert sum(size > 7 * MIB for size in before.values()) == 5
    with large.open("r+b") as file:
        file.seek(17 * MIB)
        file.write(b"?")
    protected.backup(workers=workers, attach=False)
    new = {name: size for name, size in chunks(protected).items() if name not in before}
    assert sorted(size > MIB for size in new.values()) == [False, True]  # the header and one cut
    comes_back(protected)


def test_equal_contents_in_large_files_are_stored_once(protected: Protected) -> None:
    data = random.Random(4).randbytes(16 * MIB)
    for name in ("one", "two"):
        (protected.root / name).write_bytes(data)
    protected.backup(workers=0)
    assert sum(size > 7 * MIB for size in chunks(protected).values()) == 2
    comes_back(protected)


def test_a_change_of_metadata_stores_no_content(protected: Protected) -> None:
    fill(protected.root, 40, 100_000)
    (protected.root / "large").write_bytes(random.Random(5).randbytes(17 * MIB))
    protected.backup()
    time.sleep(0.05)
    protected.backup()
    for place in [*protected.root.rglob("file-*"), protected.root / "large"]:
        place.chmod(0o600)
        os.setxattr(place, "user.new", b"new")
    outcome = protected.backup()
    assert outcome.changed == 41
    assert stored(outcome) < 100_000
    comes_back(protected)


def test_what_a_run_cut_off_had_stored_is_not_stored_again(protected: Protected) -> None:
    """Its journal names what is durable."""
    (protected.root / "large").write_bytes(random.Random(6).randbytes(40 * MIB))

    def fail() -> None:
        raise SmsnapError("go on", "planned")

    with pytest.raises(SmsnapError, match="planned"):
        protected.backup(progress=At(commit=fail))
    before = chunks(protected)
    assert len(before) >= 5
    assert stored(protected.backup()) < 64 * 1024
    assert len(chunks(protected)) <= len(before) + 1
    comes_back(protected)


# --- what hides


def test_a_second_write_through_a_mapping_to_a_dirty_page(apart: Protected) -> None:
    """It moves no time at all, and is found all the same."""
    place = apart.root / "mapped"
    for _ in range(100):  # once is enough, but others may have the kernel write back what is dirty
        place.write_bytes(bytes(8192))
        with place.open("r+b") as file, mmap.mmap(file.fileno(), 8192) as mapped:
            apart.backup(progress=At(scan=lambda mapped=mapped: mapped.__setitem__(0, 1)))
            before = place.stat()
            mapped[1] = 2
            hidden = place.stat().st_ctime_ns == before.st_ctime_ns
            assert apart.backup().snapshot is not None
            comes_back(apart)
        if hidden:
            return
    pytest.fail("the page was written back each time, so nothing was tested")


def test_a_second_write_to_a_large_file_through_a_mapping(apart: Protected) -> None:
    place = apart.root / "mapped"
    place.write_bytes(random.Random(7).randbytes(17 * MIB))
    with place.open("r+b") as file, mmap.mmap(file.fileno(), 17 * MIB) as mapped:
        apart.backup(progress=At(scan=lambda: mapped.__setitem__(9 * MIB, 1)))
        mapped[9 * MIB + 1] = mapped[9 * MIB + 1] ^ 1
        assert apart.backup().snapshot is not None
        comes_back(apart)


def test_a_write_right_after_the_reading(protected: Protected) -> None:
    """Within one tick of a coarse clock the times are the same; the run after it reads again."""
    place = protected.root / "file"
    for number in range(10):
        place.write_bytes(b"%02d before" % number)
        protected.backup(progress=At(commit=lambda number=number: place.write_bytes(b"%02d after!" % number)))
        protected.backup()
        comes_back(protected)


def test_times_put_back_hide_nothing(protected: Protected) -> None:
    fill(protected.root, 5, 3000)
    protected.backup()
    place = protected.root / "directory-0" / "file-0"
    status = place.stat()
    with place.open("r+b") as file:
        file.write(b"changed")
    os.utime(place, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert protected.backup().changed == 1
    comes_back(protected)
