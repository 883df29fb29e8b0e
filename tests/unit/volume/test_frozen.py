"""A freeze that ends: at the context's end, by the guardian if its holder is silent, and nobody else's."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from smsnapd.errors import VolumeError
from smsnapd.volume.frozen import held_frozen
from smsnapd.volume.mounts import Mount, find_mount
from tests.unit.volume.ext4 import loop_ext4, watched_over

pytestmark = [pytest.mark.root, pytest.mark.loop]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    with loop_ext4(tmp_path, "volume") as point, watched_over(point):
        yield find_mount(os.fsencode(point))


class Write:
    """A write to the volume by a process that can be left waiting."""

    def __init__(self, mount: Mount) -> None:
        self._process = subprocess.Popen(["sh", "-c", "echo . > probe"], cwd=mount.mount_point)

    def is_done_within(self, seconds: float) -> bool:
        try:
            return self._process.wait(seconds) == 0
        except subprocess.TimeoutExpired:
            return False


def test_nobody_can_write_inside(mount: Mount) -> None:
    with held_frozen(mount) as guard:
        guard.beat()
        write = Write(mount)
        assert not write.is_done_within(0.3)
    assert write.is_done_within(60)


def test_an_exception_passes_and_it_is_thawed(mount: Mount) -> None:
    with pytest.raises(KeyError), held_frozen(mount):
        raise KeyError
    assert Write(mount).is_done_within(60)


@pytest.mark.parametrize(("limit_s", "silence_s"), [(60.0, 0.4), (0.4, 60.0)])
def test_the_guardian_thaws_what_is_held_for_too_long(mount: Mount, limit_s: float, silence_s: float) -> None:
    with (
        pytest.raises(VolumeError, match="thawed before the end"),
        held_frozen(mount, limit_s=limit_s, silence_s=silence_s),
    ):
        assert Write(mount).is_done_within(60)


def test_a_freeze_of_somebody_else_is_refused_and_left_alone(mount: Mount) -> None:
    subprocess.run(["fsfreeze", "-f", mount.mount_point], check=True)
    try:
        with pytest.raises(VolumeError, match="busy"), held_frozen(mount):
            pytest.fail("it was not refused")
        write = Write(mount)
        assert not write.is_done_within(0.3)
    finally:
        subprocess.run(["fsfreeze", "-u", mount.mount_point], check=True)
    assert write.is_done_within(60)


def test_without_its_guardian_nobody_goes_on(mount: Mount) -> None:
    with pytest.raises(VolumeError, match="gone"), held_frozen(mount) as guard:
        (children,) = Path("/proc/self/task").glob(f"{os.getpid()}/children")
        (guardian,) = [
            int(child)
            for child in children.read_text().split()
            if b"guardian.py" in Path(f"/proc/{child}/cmdline").read_bytes()
        ]
        os.kill(guardian, signal.SIGKILL)
        guard._process.wait()
        guard._beaten_s = 0.0
        guard.beat()
    assert Write(mount).is_done_within(60)


def test_the_root_file_system_is_refused() -> None:
    with pytest.raises(VolumeError, match="root file system"), held_frozen(find_mount(b"/")):
        pytest.fail("it was not refused")
