"""Images as somebody with the write key can make them: not what their pieces are, or full of traps."""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from smsnapd.engine.history import History
from smsnapd.engine.image.files import files_of
from smsnapd.engine.image.raw import RawImage
from smsnapd.engine.image.restore import DeviceRequest, restore_device
from smsnapd.engine.progress import Silent
from smsnapd.errors import DamageError, SmsnapError
from smsnapd.format.image import Image
from smsnapd.format.manifest import ParentRef
from smsnapd.format.manifest_object import encode_manifest
from tests.property.protected import VOLUME, Protected
from tests.unit.engine.images import NEEDS_FUSE, NEEDS_LOOP, PIECE, make_ext4, mounted, take_image

pytestmark = [*NEEDS_LOOP, NEEDS_FUSE]


@pytest.fixture
def protected(on_disk: Protected) -> Protected:
    """A repository on disk: other processes show and mount the images in it."""
    return on_disk


def recommit(protected: Protected, change: Callable[[Image], Image]) -> None:
    """The same full once more, of another image by its own words."""
    with protected.repository(write_key=True) as repository:
        history = History.load(repository, VOLUME)
        head = history.record(history.names[-1])
        assert head.manifest.image is not None
        name = head.name._replace(sequence=head.name.sequence + 1, snapshot=secrets.token_hex(8))
        manifest = replace(
            head.manifest,
            name=name,
            parent=ParentRef(head.name.snapshot, head.hash),
            image=change(head.manifest.image),
        )
        repository.store.put(name.object_name(), encode_manifest(manifest, repository.write_key))


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image._replace(size=1 << 50),
        lambda image: image._replace(size=1 << 60, piece=1 << 59),
        lambda image: image._replace(size=image.size - PIECE),
        lambda image: image._replace(size=image.size - 512),
        lambda image: image._replace(piece=PIECE // 2),
        lambda image: image._replace(piece=PIECE * 2),
    ],
)
def test_an_image_that_is_not_its_pieces_is_damage(
    protected: Protected, tmp_path: Path, change: Callable[[Image], Image]
) -> None:
    take_image(protected, make_ext4(tmp_path / "device", "40M"))
    recommit(protected, change)
    back = tmp_path / "back"
    with protected.repository() as repository:
        history = History.load(repository, VOLUME)
        found, chain = history.find("latest"), history.chain(history.find("latest").id)
        place = (repository, protected.settings, history, found)
        with pytest.raises(DamageError):
            restore_device(*place, DeviceRequest(bytes(back)), Silent())
        with pytest.raises(DamageError), files_of(*place[:2], chain, Silent()):
            pass
        with pytest.raises(DamageError):
            RawImage(*place).write(lambda piece: None, Silent())
    assert not back.exists() or back.stat().st_blocks == 0
    assert protected.check().findings


def test_a_file_system_that_would_stop_the_kernel_may_not(protected: Protected, tmp_path: Path) -> None:
    """Its superblock asks for a panic where something is wrong with it; and something is."""
    device = make_ext4(tmp_path / "device", "16M", "-b", "4096")
    with mounted(device, tmp_path / "mounted") as root:
        (root / "inside").mkdir()
        (root / "inside" / "secret").write_text("x")
    told = subprocess.run(
        ["debugfs", "-R", "stat /inside", device], capture_output=True, text=True, check=True
    ).stdout
    block = int(told.split("(0):")[1].split()[0].strip(","))
    subprocess.run(["tune2fs", "-e", "panic", device], capture_output=True, check=True)
    with device.open("r+b") as file:
        file.seek(block * 4096)
        file.write(b"\xff" * 64)
    take_image(protected, device)
    with protected.repository() as repository:
        history = History.load(repository, VOLUME)
        chain = history.chain(history.find("latest").id)
        with (
            files_of(repository, protected.settings, chain, Silent()) as tree,
            pytest.raises(SmsnapError, match="in the image"),
        ):
            assert tree.image_root is not None
            holder = os.fsdecode(tree.image_root).split("/")[2]
            mounts = Path(f"/proc/{holder}/mountinfo").read_text().splitlines()
            options = next(line for line in mounts if " ext4 " in line and "smsnap-mount-" in line)
            assert "errors=panic" not in options
            for _ in tree.listings():
                pass


def test_a_link_out_of_the_image_is_restored_as_a_link(protected: Protected, tmp_path: Path) -> None:
    device = make_ext4(tmp_path / "device", "16M", "-b", "4096")
    outside = tmp_path / "outside"
    outside.mkdir()
    with mounted(device, tmp_path / "mounted") as root:
        (root / "trap").symlink_to(outside)
        (root / "plain").write_text("inside")
    take_image(protected, device)
    protected.restore(tmp_path / "back")
    assert os.readlink(tmp_path / "back" / "trap") == str(outside)
    assert list(outside.iterdir()) == []
