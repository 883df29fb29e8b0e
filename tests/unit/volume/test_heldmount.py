"""File systems mounted where nobody else sees them, and gone with whoever mounted them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from smsnapd.errors import VolumeError
from smsnapd.volume.heldmount import PathSource, held_mount
from smsnapd.volume.mounts import mounted_devices
from tests.unit.engine.images import NEEDS_LOOP, fsck, make_ext4

pytestmark = NEEDS_LOOP
CHECKOUT = Path(__file__).parents[3]
PATIENCE_S = float(os.environ.get("SMSNAP_TEST_PATIENCE_S", "180"))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return make_ext4(tmp_path / "image", "8M")


def eventually(look: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not look():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.05)


def attached(image: Path) -> bool:
    """Whether a loop device has the image."""
    told = subprocess.run(["losetup", "-j", image], capture_output=True, text=True, check=True).stdout
    return bool(told)


def test_it_is_seen_by_us_alone_and_what_is_written_stays(image: Path) -> None:
    with held_mount(PathSource(bytes(image)), "rw") as mount:
        root = Path(os.fsdecode(mount.root))
        (root / "written").write_text("here")
        device = root.stat().st_dev
        assert f"{os.major(device)}:{os.minor(device)}" not in mounted_devices()
        assert Path(os.fsdecode(mount.device)).is_block_device()
        options = Path(f"/proc/{mount.root.split(b'/')[2].decode()}/mountinfo").read_text()
        line = next(line for line in options.splitlines() if " ext4 " in line and "smsnap-mount-" in line)
        assert {"nosuid", "nodev", "noexec"} <= set(line.split()[5].split(","))
    eventually(lambda: not attached(image), "the loop device to go")
    fsck(image)
    with held_mount(PathSource(bytes(image)), "ro") as mount:
        assert (Path(os.fsdecode(mount.root)) / "written").read_text() == "here"
        with pytest.raises(OSError, match="Read-only"):
            (Path(os.fsdecode(mount.root)) / "more").touch()


def test_a_file_that_is_open_still_does_not_keep_a_read_only_one(image: Path) -> None:
    with held_mount(PathSource(bytes(image)), "ro") as mount:
        held = os.open(mount.root, os.O_RDONLY)
    os.close(held)
    eventually(lambda: not attached(image), "the loop device to go")


def test_others_can_unmount_what_they_have_meanwhile(image: Path, tmp_path: Path) -> None:
    other = make_ext4(tmp_path / "other", "8M")
    (tmp_path / "point").mkdir()
    subprocess.run(["mount", "-o", "loop", other, tmp_path / "point"], check=True)
    with held_mount(PathSource(bytes(image)), "ro"):
        subprocess.run(["umount", tmp_path / "point"], check=True)
        eventually(lambda: not attached(other), "the loop device to go")


def test_what_is_no_file_system_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(os.urandom(1 << 20))
    with (
        pytest.raises(VolumeError, match=r"mount .*(superblock|wrong fs type)"),
        held_mount(PathSource(bytes(tmp_path / "image")), "ro"),
    ):
        pass
    eventually(lambda: not attached(tmp_path / "image"), "the loop device to go")


HOLDER = """
import sys, time
sys.path.insert(0, sys.argv[2])
from smsnapd.volume import heldmount
heldmount.scratch = lambda: sys.argv[3]
with heldmount.held_mount(heldmount.PathSource(sys.argv[1].encode()), "rw"):
    print("up", flush=True)
    time.sleep(1000)
"""


@pytest.mark.parametrize("victim", ["holder", "child"])
def test_it_goes_with_the_process_that_is_killed(image: Path, tmp_path: Path, victim: str) -> None:
    arguments = [sys.executable, "-c", HOLDER, str(image), str(CHECKOUT), str(tmp_path)]
    holder = subprocess.Popen(arguments, stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"up\n"
        assert attached(image)
        child = int(Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text().split()[0])
        os.kill(holder.pid if victim == "holder" else child, signal.SIGKILL)
        eventually(lambda: not attached(image), "the loop device to go")
        if victim == "holder":
            eventually(lambda: not any(tmp_path.glob("smsnap-mount-*")), "its directory to go")
    finally:
        holder.kill()
        holder.communicate()
    subprocess.run(["e2fsck", "-fp", image], capture_output=True, check=True)
