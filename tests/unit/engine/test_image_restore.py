"""Block images brought back: to devices and files of every size, by files, and the files in them."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from smsnapd.engine.history import History
from smsnapd.engine.image.files import files_of
from smsnapd.engine.image.restore import DeviceOutcome, DeviceRequest, restore_device
from smsnapd.engine.lookback.browse import list_entries, open_file
from smsnapd.engine.progress import Silent
from smsnapd.errors import DamageError, TargetError, UsageError, VolumeError
from smsnapd.volume import fuse
from smsnapd.volume.imagetarget import OpenTarget
from tests.property.observed import differences, observe
from tests.property.protected import VOLUME, Protected
from tests.unit.engine.images import NEEDS_FUSE, NEEDS_LOOP, fsck, make_ext4, mounted, take_image

pytestmark = [*NEEDS_LOOP, NEEDS_FUSE]
MIB = 1024 * 1024
CHECKOUT = Path(__file__).parents[3]


@pytest.fixture
def device(tmp_path: Path) -> Path:
    """An ext4 of 48 MiB in a file."""
    return make_ext4(tmp_path / "device", "48M", "-b", "4096", "-L", "notebook")


def populate(root: Path) -> None:
    """A bit of everything."""
    (root / "work" / "deep").mkdir(parents=True)
    (root / "work" / "small").write_bytes(b"small content")
    (root / "work" / "large").write_bytes(os.urandom(9 * MIB + 77))
    (root / "work" / "empty").touch()
    with (root / "work" / "sparse").open("wb") as file:
        file.truncate(20 * MIB)
        file.seek(5 * MIB)
        file.write(b"in the middle")
    (root / "link").symlink_to("work/nowhere")
    os.link(root / "work" / "small", root / "work" / "deep" / "same")
    os.mkfifo(root / "fifo")
    os.mknod(root / "null", 0o020644, os.makedev(1, 3))
    os.setxattr(root / "work" / "small", "user.note", b"\x00\xff")
    for number, path in enumerate(sorted(root.rglob("*"))):
        if not path.is_symlink():
            os.chown(path, 500, 500 + number % 2)
            os.utime(path, ns=(0, 1_600_000_000_123_000_000 + number))


def to_device(protected: Protected, path: Path, snapshot: str = "latest", **request: object) -> DeviceOutcome:
    with protected.repository() as repository:
        history = History.load(repository, VOLUME)
        asked = DeviceRequest(bytes(path), **{"workers": protected.workers, **request})  # type: ignore[arg-type]
        found = history.find(snapshot)
        return restore_device(repository, protected.settings, history, found, asked, Silent())


def seen(root: Path) -> object:
    return observe(root)


@pytest.fixture
def protected(on_disk: Protected) -> Protected:
    """A repository on disk: other processes show and mount the images in it."""
    return on_disk


@pytest.fixture
def imaged(protected: Protected, device: Path, tmp_path: Path) -> Callable[..., Protected]:
    """`imaged()`: the device, populated, and a block full of it."""

    def make(**how: object) -> Protected:
        with mounted(device, tmp_path / "mounted") as root:
            populate(root)
        take_image(protected, device, **how)  # type: ignore[arg-type]
        return protected

    return make


@contextlib.contextmanager
def both(first: Path, second: Path, tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    with (
        mounted(first, tmp_path / "one", "loop,ro") as one,
        mounted(second, tmp_path / "two", "loop,ro") as two,
    ):
        yield one, two


def same_files(first: Path, second: Path, tmp_path: Path) -> None:
    with both(first, second, tmp_path) as (one, two):
        assert list(differences(observe(one), observe(two))) == []


def free_of(path: Path) -> int:
    told = subprocess.run(["dumpe2fs", "-h", path], capture_output=True, text=True, check=True).stdout
    return int(next(line.split()[-1] for line in told.splitlines() if line.startswith("Block count:")))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_of_the_same_size_is_the_image(
    imaged: Callable[..., Protected], device: Path, tmp_path: Path, workers: int
) -> None:
    outcome = to_device(imaged(), tmp_path / "back", verify=True, workers=workers)
    assert (outcome.way, outcome.size) == ("image", 48 * MIB)
    assert outcome.verified == outcome.bytes > 9 * MIB
    assert (tmp_path / "back").stat().st_blocks * 512 < 40 * MIB
    fsck(tmp_path / "back")
    same_files(device, tmp_path / "back", tmp_path)


def test_what_was_there_is_overwritten_only_if_told_and_is_gone_then(
    imaged: Callable[..., Protected], device: Path, tmp_path: Path
) -> None:
    protected, back = imaged(), tmp_path / "back"
    back.write_bytes(b"\xa5" * (48 * MIB))
    with pytest.raises(TargetError, match=r"not zero.*--destroy"):
        to_device(protected, back)
    assert set(back.read_bytes()) == {0xA5}
    to_device(protected, back, destroy=True, verify=True)
    assert b"\xa5" * 4096 not in back.read_bytes()
    same_files(device, back, tmp_path)


@pytest.mark.parametrize("place", ["data", "zeros"])
def test_reading_back_finds_what_is_not_as_it_was_written(
    imaged: Callable[..., Protected],
    device: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
) -> None:
    protected, content = imaged(), device.read_bytes()
    unit = next(
        offset
        for offset in range(len(content) - 4096, 0, -4096)
        if (content[offset : offset + 4096] == bytes(4096)) == (place == "zeros")
    )
    forget = OpenTarget.forget

    def spoil(opened: OpenTarget) -> None:
        opened.write(unit, b"spoilt")
        forget(opened)

    monkeypatch.setattr(OpenTarget, "forget", spoil)
    to_device(protected, tmp_path / "unseen")
    with pytest.raises(DamageError, match="not what was written"):
        to_device(protected, tmp_path / "back", verify=True)


def test_a_larger_one_is_used_whole(imaged: Callable[..., Protected], device: Path, tmp_path: Path) -> None:
    protected, back = imaged(), tmp_path / "back"
    subprocess.run(["truncate", "-s", "96M", back], check=True)
    assert to_device(protected, back).way == "grown"
    fsck(back)
    assert free_of(back) == 2 * free_of(device)
    same_files(device, back, tmp_path)


def test_a_smaller_one_gets_the_files_if_they_fit(
    imaged: Callable[..., Protected], device: Path, tmp_path: Path
) -> None:
    protected, back = imaged(), tmp_path / "back"
    subprocess.run(["truncate", "-s", "24M", back], check=True)
    outcome = to_device(protected, back, verify=True)
    assert (outcome.way, outcome.not_restored) == ("files", ())
    found = files(protected)
    del found[b"work/deep/same"]  # a further name
    assert outcome.verified == sum(map(len, found.values()))
    fsck(back)
    same_files(device, back, tmp_path)
    subprocess.run(["truncate", "-s", "12M", tmp_path / "tiny"], check=True)
    with pytest.raises(TargetError, match="take about"):
        to_device(protected, tmp_path / "tiny")
    assert not any((tmp_path / "tiny").read_bytes())


def test_users_are_mapped_on_the_device(imaged: Callable[..., Protected], tmp_path: Path) -> None:
    protected = imaged()
    to_device(protected, tmp_path / "back", users=(("500", "1000"),))
    fsck(tmp_path / "back")
    with mounted(tmp_path / "back", tmp_path / "one", "loop,ro") as root:
        found = (root / "work" / "small").stat()
        assert (found.st_uid, found.st_nlink, found.st_mtime_ns % 1000) == (1000, 2, found.st_mtime_ns % 1000)
        assert os.getxattr(root / "work" / "small", "user.note") == b"\x00\xff"
        assert all(path.lstat().st_uid in (0, 1000) for path in root.rglob("*"))


def test_a_device_that_is_in_use_is_refused(imaged: Callable[..., Protected], tmp_path: Path) -> None:
    protected = imaged()
    other = make_ext4(tmp_path / "other", "48M")
    with mounted(other, tmp_path / "busy") as root:
        number = os.stat(root).st_dev
        with pytest.raises(TargetError, match=r"mounted on .*busy"):
            to_device(protected, Path(f"/dev/loop{os.minor(number)}"), destroy=True)
        with pytest.raises(TargetError, match="attached to /dev/loop"):
            to_device(protected, other, destroy=True)
    fsck(other)
    with pytest.raises(TargetError, match="neither"):
        to_device(protected, tmp_path)


def test_damage_leaves_no_file_system(on_disk: Protected, device: Path, tmp_path: Path) -> None:
    with mounted(device, tmp_path / "mounted") as root:
        populate(root)
    take_image(on_disk, device)
    chunks = sorted((tmp_path / "repository").rglob("chunks/*/*"), key=lambda path: path.stat().st_size)
    chunks[-1].write_bytes(b"\0" * chunks[-1].stat().st_size)
    back = tmp_path / "back"
    shutil.copy(device, back)
    with pytest.raises(DamageError):
        to_device(on_disk, back, destroy=True, workers=0)
    assert back.read_bytes()[:MIB] == bytes(MIB)


CUT_OFF = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from smsnapd.store import StoreSettings
from smsnapd.volume.imagetarget import OpenTarget
from tests.property.protected import Protected
from tests.unit.engine.test_image_restore import to_device

calls, sync = [], OpenTarget.sync

def counted(opened):
    sync(opened)
    calls.append(opened)
    if len(calls) == int(sys.argv[5]):
        print("up", flush=True)
        time.sleep(1000)

OpenTarget.sync = counted
protected = Protected(Path("/"), Path("/"), StoreSettings(sys.argv[2]), sys.argv[3], "")
to_device(protected, Path(sys.argv[4]), destroy=True, workers=0)
"""


@pytest.mark.parametrize("stage", [1, 2])
def test_what_is_killed_on_the_way_leaves_no_file_system_and_can_be_begun_again(
    on_disk: Protected, device: Path, tmp_path: Path, stage: int
) -> None:
    with mounted(device, tmp_path / "mounted") as root:
        populate(root)
    take_image(on_disk, device)
    back = make_ext4(tmp_path / "back", "48M")
    arguments = (str(CHECKOUT), on_disk.settings.url, on_disk.recovery_key, str(back), str(stage))
    process = subprocess.Popen([sys.executable, "-c", CUT_OFF, *arguments], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None and process.stdout.readline() == b"up\n"
    finally:
        process.kill()
        process.communicate()
    assert back.read_bytes()[:MIB] == bytes(MIB)
    to_device(on_disk, back, verify=True)
    fsck(back)
    same_files(device, back, tmp_path)


# --- files


def files(protected: Protected, snapshot: str = "latest") -> dict[bytes, bytes]:
    """Every regular file as `ls` and `cat` see it."""
    with protected.repository() as repository:
        history = History.load(repository, VOLUME)
        chain = history.chain(history.find(snapshot).id)
        with files_of(repository, protected.settings, chain, Silent()) as tree:
            paths = [path for path, entry in list_entries(tree, b"", True) if entry.kind == 1]
            return {path: b"".join(open_file(tree, path)) for path in paths}


@pytest.mark.parametrize("way", ["fuse", "temporary", "live"])
def test_files_out_of_an_image(
    imaged: Callable[..., Protected],
    device: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    way: str,
) -> None:
    protected = imaged(consistency="live" if way == "live" else "freeze")
    if way == "temporary":

        def missing() -> None:
            raise VolumeError("mount with FUSE", "it is not there", "install it")

        monkeypatch.setattr(fuse, "check_available", missing)
    outcome = protected.restore(tmp_path / "back")
    assert outcome.not_restored == ()
    with mounted(device, tmp_path / "one", "loop,ro") as root:
        assert list(differences(observe(root), observe(tmp_path / "back"))) == []
        found = files(protected)
        for path, content in found.items():
            assert (root / os.fsdecode(path)).read_bytes() == content
        assert {b"work/large", b"work/deep/same", b"work/sparse"} <= set(found)


def test_files_out_of_an_image_beside_other_threads(on_disk: Protected, device: Path, tmp_path: Path) -> None:
    """Processes cannot be forked then; all that the new ones need goes to them over pipes."""
    with mounted(device, tmp_path / "mounted") as root:
        populate(root)
        original = observe(root)
    take_image(on_disk, device)
    done = threading.Event()
    other = threading.Thread(target=done.wait)
    other.start()
    try:
        assert on_disk.restore(tmp_path / "back").not_restored == ()
    finally:
        done.set()
        other.join()
    assert list(differences(original, observe(tmp_path / "back"))) == []


def test_one_path_is_restored_and_little_is_fetched(imaged: Callable[..., Protected], tmp_path: Path) -> None:
    protected = imaged()
    outcome = protected.restore(tmp_path / "back", paths=(b"work/deep",))
    assert [path.name for path in (tmp_path / "back").rglob("*") if path.is_file()] == ["same"]
    assert (tmp_path / "back" / "work" / "deep" / "same").read_bytes() == b"small content"
    assert outcome.files == 1


def test_an_image_of_something_else_is_only_written_whole(protected: Protected, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(os.urandom(3 * MIB) + bytes(MIB) + b"end" + bytes(509))
    take_image(protected, other, filesystem="")
    to_device(protected, tmp_path / "back", verify=True)
    assert (tmp_path / "back").read_bytes() == other.read_bytes()
    with pytest.raises(UsageError, match="not ext4"):
        protected.restore(tmp_path / "files")
    subprocess.run(["truncate", "-s", "2M", tmp_path / "small"], check=True)
    with pytest.raises(TargetError, match="at least as large"):
        to_device(protected, tmp_path / "small")


# --- chains


def edits(root: Path) -> Iterator[Callable[[], object]]:
    """Three rounds of what people do."""

    def first() -> None:
        (root / "work" / "small").write_bytes(b"rewritten")
        (root / "new").mkdir()
        (root / "new" / "big").write_bytes(os.urandom(9 * MIB))

    def second() -> None:
        (root / "work" / "deep").rename(root / "moved")
        (root / "work" / "large").unlink()
        (root / "work" / "sparse").chmod(0o600)
        (root / "null").unlink()
        (root / "null").mkdir()

    def third() -> None:
        shutil.rmtree(root / "new")
        (root / "link").unlink()
        (root / "link").write_bytes(b"a file now")
        os.link(root / "work" / "empty", root / "moved" / "emptied")

    yield from (first, second, third)


def test_a_block_full_and_three_deltas_come_back_at_each_of_their_moments(
    protected: Protected, device: Path, tmp_path: Path
) -> None:
    moments: list[tuple[str, object]] = []
    with mounted(device, tmp_path / "volume") as root:
        populate(root)
        for number, edit in enumerate([lambda: None, *edits(root)]):
            edit()
            committed = protected.backup(mode="block").snapshot
            assert committed is not None
            expected = ("incremental", "tar") if number else ("full", "block")
            assert (committed.kind, committed.mode) == expected
            moments.append((committed.id, observe(root)))
    for number, (snapshot, state) in enumerate(moments):
        protected.restore(tmp_path / f"files-{number}", snapshot)
        assert list(differences(state, observe(tmp_path / f"files-{number}"))) == []
        back = tmp_path / f"device-{number}"
        outcome = to_device(protected, back, snapshot, verify=True)
        assert outcome.not_restored == ()
        assert outcome.verified > outcome.bytes * 0.9
        fsck(back)
        with mounted(back, tmp_path / "one", "loop,ro") as one:
            assert list(differences(state, observe(one))) == []
        back.unlink()
    subprocess.run(["truncate", "-s", "24M", tmp_path / "small"], check=True)
    to_device(protected, tmp_path / "small", moments[2][0])
    fsck(tmp_path / "small")
    with mounted(tmp_path / "small", tmp_path / "one", "loop,ro") as one:
        assert list(differences(moments[2][1], observe(one))) == []
