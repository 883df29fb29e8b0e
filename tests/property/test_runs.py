"""What a run stores and what not, and the changes that hide from it."""

from __future__ import annotations

import fcntl
import itertools
import mmap
import os
import random
import shutil
import struct
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from smsnapd.engine.backup import BackupOutcome
from smsnapd.engine.history import History
from smsnapd.engine.progress import Silent
from smsnapd.errors import LockedError, SmsnapError
from smsnapd.model import Entry
from smsnapd.repository.lease import Lease
from smsnapd.store import StoreSettings
from smsnapd.volume.tarball import read as read_module
from tests.property.children import run_child
from tests.property.observed import differences, observe
from tests.property.protected import VOLUME, Protected

MIB = 1024 * 1024
FIBMAP = 1
pytestmark = [pytest.mark.root, pytest.mark.loop]


@pytest.fixture
def protected(new_directory: Callable[[], Path]) -> Iterator[Protected]:
    directory = new_directory()
    root = directory / "volume"
    root.mkdir()
    yield Protected.create(root, directory / "state", StoreSettings((directory / "repository").as_uri()))
    shutil.rmtree(directory)


@pytest.fixture
def apart(protected: Protected) -> Protected:
    """The same volume; its repository is in memory, so that no `barrier` writes back what is dirty on the volume."""
    settings = StoreSettings(f"memory://{uuid.uuid4().hex}")
    return Protected.create(protected.root, protected.state_dir, settings)


class At(Silent):
    """Does something when a run comes to a phase."""

    def __init__(self, **actions: Callable[[], object]) -> None:
        self._actions = actions

    def phase(self, name: str, files: int | None = None, bytes: int | None = None) -> None:
        if action := self._actions.pop(name, None):
            action()


def chunks(protected: Protected) -> dict[str, int]:
    """Chunks that are objects of their own, and their sizes."""
    with protected.repository() as repository:
        return {info.name: info.size for info in repository.store.list(f"volumes/{VOLUME}/chunks/")}


def stored(outcome: BackupOutcome) -> int:
    assert outcome.snapshot is not None
    return outcome.snapshot.stored_bytes


def comes_back(protected: Protected, target: str = "restored", **request: object) -> None:
    """The newest recovery point is the volume as it is now."""
    place = protected.root.with_name(target)
    protected.restore(place, **request)
    assert differences(observe(protected.root), observe(place)) == []
    shutil.rmtree(place)


def fill(root: Path, count: int, size: int, seed: int = 1) -> None:
    rng = random.Random(seed)
    for number in range(count):
        place = root / f"directory-{number % 7}" / f"file-{number}"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(rng.randbytes(size))


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
    for _ in range(5):
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


# --- what moves


def restless(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    """Let a file change between each two looks at it, as often as it is read."""
    original, moments, inode = read_module.is_as, itertools.count(), place.stat().st_ino

    def move_and_look(entry: Entry, status: os.stat_result) -> bool:
        if entry.inode == inode:
            os.utime(place, ns=(0, next(moments)))
            status = place.stat()
        return original(entry, status)

    monkeypatch.setattr(read_module, "is_as", move_and_look)


@pytest.mark.parametrize("size", [3000, 17 * MIB])
def test_a_file_that_will_not_hold_still_is_stored_and_named(
    protected: Protected, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    fill(protected.root, 5, 100)
    place = protected.root / "restless"
    place.write_bytes(random.Random(8).randbytes(size))
    with monkeypatch.context() as context:
        restless(context, place)
        outcome = protected.backup(workers=0)
    assert [(issue.path, issue.reason) for issue in outcome.incomplete] == [(b"restless", "changed while read")]
    assert outcome.snapshot is not None and not outcome.snapshot.complete
    restored = protected.root.with_name("restored")
    protected.restore(restored)
    assert (restored / "restless").read_bytes() == place.read_bytes()
    shutil.rmtree(restored)
    outcome = protected.backup()
    assert outcome.snapshot is not None and outcome.snapshot.complete
    comes_back(protected)


def test_what_vanishes_during_a_run_is_a_deletion(protected: Protected) -> None:
    fill(protected.root, 30, 1000)
    protected.backup()
    (protected.root / "directory-3" / "new").write_bytes(b"new")
    (protected.root / "new" / "deep").mkdir(parents=True)
    (protected.root / "new" / "deep" / "file").write_bytes(b"new")
    (protected.root / "directory-4" / "file-4").write_bytes(b"changed")

    def vanish() -> None:
        (protected.root / "directory-3" / "new").unlink()
        (protected.root / "directory-4" / "file-4").unlink()
        shutil.rmtree(protected.root / "new")

    outcome = protected.backup(progress=At(store=vanish))
    assert outcome.snapshot is not None and outcome.snapshot.complete
    restored = protected.root.with_name("restored")
    protected.restore(restored)
    assert set(observe(restored)) == set(observe(protected.root))
    shutil.rmtree(restored)
    protected.backup()
    comes_back(protected)


def test_names_of_a_file_that_parts_from_them_during_a_run(protected: Protected) -> None:
    """The first name is another file by the time it is read; the others keep their content."""
    root = protected.root
    (root / "b").write_bytes(b"shared by three")
    os.link(root / "b", root / "c")
    os.link(root / "b", root / "d")

    def part() -> None:
        (root / ".new").write_bytes(b"b's own")
        (root / ".new").rename(root / "b")

    protected.backup(progress=At(store=part))
    comes_back(protected)


def test_a_file_that_becomes_large_during_a_run(protected: Protected) -> None:
    place = protected.root / "file"
    place.write_bytes(b"small")
    (protected.root / "was-large").write_bytes(bytes(9 * MIB))

    def grow() -> None:
        place.write_bytes(random.Random(9).randbytes(9 * MIB))
        (protected.root / "was-large").write_bytes(b"small")

    protected.backup(progress=At(store=grow))
    comes_back(protected)


# --- who may


def test_what_an_ordinary_user_may_not_read_is_named_and_stays_as_it_was(protected: Protected) -> None:
    """A run as root first; then as nobody: what he cannot look at is unknown, and not gone."""
    fill(protected.root, 21, 500)
    top = protected.root.parent
    protected.backup()
    before = observe(protected.root)
    (protected.root / "directory-1" / "file-1").chmod(0o600)
    (protected.root / "directory-2").chmod(0o700)
    (protected.root / "directory-3" / "new").write_bytes(b"new")
    top.chmod(0o755)
    for path in [top / "state", top / "repository", *(top / "state").rglob("*"), *(top / "repository").rglob("*")]:
        os.chown(path, 65_534, 65_534)

    def as_nobody() -> dict[bytes, str]:
        outcome = protected.backup()
        assert outcome.snapshot is not None and not outcome.snapshot.complete
        return {issue.path: issue.reason for issue in outcome.incomplete}

    found = run_child(as_nobody, uid=65_534)
    assert found == {
        b"directory-1/file-1": "unreadable: Permission denied",
        b"directory-2": "unreadable: Permission denied",
    }
    restored = top / "restored"
    protected.restore(restored)
    after = observe(restored)
    assert after.keys() == before.keys() | {b"directory-3/new"}
    assert after[b"directory-1/file-1"].content == before[b"directory-1/file-1"].content
    assert after[b"directory-2/file-2"] == before[b"directory-2/file-2"]


def test_one_writer_at_a_time(protected: Protected) -> None:
    fill(protected.root, 3, 10)
    with protected.repository() as repository:
        lease = Lease.take(repository.store, repository.id, VOLUME)
        with pytest.raises(LockedError):
            protected.backup()
        lease.release()
    assert protected.backup().snapshot is not None


def test_a_writer_that_lost_its_lease_commits_nothing_that_counts(protected: Protected) -> None:
    """It slept; another one took the lease and committed; then it wakes up right before its commit."""
    fill(protected.root, 3, 10)

    def overtake() -> None:
        with protected.repository() as repository:
            Lease.take(repository.store, repository.id, VOLUME, dead=lambda holder: True).release()
        protected.backup(state_dir=protected.state_dir / "other")

    with pytest.raises(LockedError):
        protected.backup(progress=At(commit=overtake))
    assert len(protected.snapshots()) == 1
    assert protected.check().findings == ()
    comes_back(protected)
    (protected.root / "more").write_bytes(b"more")
    protected.backup()
    comes_back(protected)
