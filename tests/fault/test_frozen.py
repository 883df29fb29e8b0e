"""Images of a volume under a running load: each is one moment's, and nobody waits for long, whatever ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from smsnapd.engine.history import History
from smsnapd.engine.image.names import Names
from smsnapd.engine.image.raw import RawImage
from smsnapd.engine.image.restore import DeviceRequest, restore_device
from smsnapd.engine.progress import Silent
from smsnapd.store import StoreSettings
from tests.fault.load import under_load
from tests.property.observed import differences, observe
from tests.property.protected import VOLUME, Protected
from tests.unit.engine.images import NEEDS_LOOP, fsck, make_ext4, mounted
from tests.unit.volume.ext4 import watched_over

pytestmark = NEEDS_LOOP
LONG = bool(os.environ.get("SMSNAP_LONG"))
ROUNDS = 8 if LONG else 2
FORMS = {
    "4k": ("-b", "4096"),
    "1k": ("-b", "1024"),
    "small inodes": ("-I", "128"),
    "no journal": ("-O", "^has_journal"),
    "block maps": ("-t", "ext3"),
    "inline data": ("-O", "inline_data"),
    "bigalloc": ("-O", "bigalloc", "-C", "16384"),
    "meta_bg": ("-O", "meta_bg,^resize_inode,^flex_bg", "-b", "1024"),
    "orphan file": ("-O", "orphan_file,ea_inode,metadata_csum_seed,large_dir"),
}


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """In memory where that can be had: what is written to a disk that others use has to wait for them."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_mount() else None) as directory:
        yield Path(directory)


@pytest.fixture
def volume(tmp_path: Path, form: str) -> Iterator[Path]:
    device = make_ext4(tmp_path / "device", "192M", *FORMS[form])
    with mounted(device, tmp_path / "mounted") as root, watched_over(root, 3000):
        (root / "large").write_bytes(os.urandom(8 << 20))
        yield root


@pytest.fixture
def on_disk(volume: Path, tmp_path: Path) -> Protected:
    settings = StoreSettings(url=(tmp_path / "repository").as_uri())
    return Protected.create(volume, tmp_path / "state", settings)


def taken(protected: Protected, path: Path) -> None:
    """The newest image, byte by byte as it was stored: nothing mends it on its way."""
    with protected.repository() as repository, path.open("wb") as file:
        history = History.load(repository, VOLUME)
        image = RawImage(repository, protected.settings, history, history.find("latest"))
        image.write(lambda piece: write_sparse(file, piece), Silent())
        file.truncate(image.size)


def write_sparse(file: BinaryIO, piece: memoryview) -> None:
    if any(piece.cast("Q") if len(piece) % 8 == 0 else piece):
        file.write(piece)
    else:
        file.seek(len(piece), os.SEEK_CUR)


def checked(path: Path) -> None:
    """e2fsck finds nothing to say. One without a journal is told unclean as long as it is mounted."""
    done = subprocess.run(["e2fsck", "-fn", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def brought_back(protected: Protected, path: Path) -> None:
    with protected.repository() as repository:
        history = History.load(repository, VOLUME)
        request = DeviceRequest(bytes(path), destroy=True)
        restore_device(repository, protected.settings, history, history.find("latest"), request, Silent())


@pytest.mark.parametrize("form", [*FORMS] if LONG else ["4k", "1k"])
def test_every_image_is_the_volume_at_the_moment_of_the_freeze(
    volume: Path, on_disk: Protected, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    seen: list[Any] = []
    took: list[float] = []
    mend = Names.mend

    def looking(self: Names, moved: Any, beat: Any) -> None:
        began = time.monotonic()
        # The kernel's own view, while it stands still. What was deleted and is open has no name.
        seen.append(observe(volume))
        mend(self, moved, beat)
        took.append(time.monotonic() - began)

    monkeypatch.setattr(Names, "mend", looking)
    with under_load(volume) as waits:
        for number in range(ROUNDS):
            made = on_disk.backup(mode="block", full=True)
            assert made.snapshot is not None and made.snapshot.complete
            taken(on_disk, tmp_path / "taken")
            checked(tmp_path / "taken")
            with mounted(tmp_path / "taken", tmp_path / "looked-at", "loop,ro") as root:
                assert list(differences(seen[number], observe(root))) == []
    print(f"{form}: the longest wait of a write {max(waits):.2f} s; looking took {max(took):.2f} s of it")


@pytest.mark.parametrize("form", ["4k"])
def test_deltas_behind_an_image_tell_all_that_went_on(
    volume: Path, on_disk: Protected, tmp_path: Path
) -> None:
    """What the load made and took away while the image was read and held is in the tree behind it."""
    for _ in range(ROUNDS):
        shutil.rmtree(volume / "load0", ignore_errors=True)
        shutil.rmtree(volume / "load1", ignore_errors=True)
        with under_load(volume):
            on_disk.backup(mode="block", full=True)
        delta = on_disk.backup(mode="block").snapshot
        assert delta is not None and delta.kind == "incremental"
        brought_back(on_disk, tmp_path / "restored")
        fsck(tmp_path / "restored")
        with mounted(tmp_path / "restored", tmp_path / "looked-at", "loop,ro") as root:
            assert list(differences(observe(volume), observe(root))) == []


BACKUP = """
import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from smsnapd.engine.image import passes
from smsnapd.store import StoreSettings
from tests.property.protected import Protected

wanted, thawed_by, root, state, url, key, write_key = sys.argv[1:]
reached = {}

def stop(where):
    reached[where] = reached.get(where, 0) + 1
    if wanted == f"{where} {reached[where]}":
        print("here", flush=True)
        sys.stdin.read()

def before(where, of):
    def wrapped(*args, **named):
        stop(where)
        return of(*args, **named)
    return wrapped

held_frozen = passes.held_frozen
if thawed_by == "only its end":
    # Neither silence nor the time that it takes ends the hold.
    passes.HOLD_S, held_frozen = 1000.0, partial(held_frozen, silence_s=1000.0)

@contextmanager
def held(*args, **named):
    with held_frozen(*args, **named) as guard:
        stop("frozen")
        yield guard
        stop("thaw")

passes.held_frozen = held
look = passes.Eyes.look

def looking(eyes, since_ns, log):
    stop("last look" if log is passes.Log.BY_ITS_STATE else "look")
    return look(eyes, since_ns, log)

passes.Eyes.look = looking
passes.Passes._copy_some = before("copy", passes.Passes._copy_some)
passes.Names.mend = before("names", passes.Names.mend)
passes.ImageStorage.store = before("store", passes.ImageStorage.store)
protected = Protected(Path(root), Path(state), StoreSettings(url=url), key, write_key)
protected.backup(mode="block", full=True)
print("done", flush=True)
"""
LIVE = ["look 1", "store 1", "look 2"]
FROZEN = ["frozen 1", "frozen 2", "frozen 3", "last look 1", "copy 1", "copy 2", "names 1", "thaw 3"]
BEHIND = ["store 3"]
"""Calls in a backup: two or more passes, each with a freeze for a moment, and the last, which is short."""


def start(protected: Protected, stage: str, thawed_by: str) -> subprocess.Popen[bytes]:
    """A backup in a process of its own, which has come to a stage and waits there.

    Its hold ends by silence, as ever, or where `thawed_by` is "only its end" not before the process ends.
    """
    url, keys = protected.settings.url, (protected.recovery_key, protected.write_key_text)
    process = subprocess.Popen(
        [sys.executable, "-c", BACKUP, stage, thawed_by, protected.root, protected.state_dir, url, *keys],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == b"here\n"
    return process


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


class Writer:
    """A write to a volume, begun in a process that can be left waiting."""

    def __init__(self, volume: Path) -> None:
        self._process = subprocess.Popen(["sh", "-c", "echo . > probe"], cwd=volume)

    def is_done_within(self, seconds: float) -> bool:
        try:
            return self._process.wait(seconds) == 0
        except subprocess.TimeoutExpired:
            return False


@pytest.mark.parametrize("form", ["4k"])
def test_a_killed_backup_leaves_a_volume_that_takes_writes(volume: Path, on_disk: Protected) -> None:
    for stage in (*LIVE, *FROZEN, *BEHIND):
        process = start(on_disk, stage, "only its end")
        try:
            writer = Writer(volume)
            if stage in FROZEN:
                assert not writer.is_done_within(0.2), stage
            began = time.monotonic()
            process.send_signal(signal.SIGKILL)
            assert writer.is_done_within(60), stage
            took = time.monotonic() - began
        finally:
            end(process)
        print(f"killed at {stage}: written after {took:.2f} s")
    assert on_disk.snapshots() == ()
    after = on_disk.backup(mode="block").snapshot
    assert after is not None and after.mode == "block"


@pytest.mark.parametrize("form", ["4k"])
def test_a_backup_that_hangs_loses_its_hold_and_commits_nothing(
    volume: Path, on_disk: Protected, tmp_path: Path
) -> None:
    process = start(on_disk, "names 1", "silence")
    try:
        writer = Writer(volume)
        assert not writer.is_done_within(1)
        assert writer.is_done_within(60)
        told, _ = process.communicate(b"", timeout=60)
        assert b"done" not in told and process.returncode != 0
    finally:
        end(process)
    assert on_disk.snapshots() == ()
