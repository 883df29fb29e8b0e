"""What block images need to come back: the tools that change a file system, and FUSE to look into one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from smsnapd.cli.doctor.findings import Check, Judged, fail, ok, warn
from smsnapd.cli.doctor.patient import Patient
from smsnapd.errors import VolumeError
from smsnapd.volume import e2fsprogs, fuse

_TOOLS: Final = ("e2fsck", "resize2fs", "mkfs.ext4", "dumpe2fs")


def coming_back(patient: Patient) -> Iterator[Judged]:
    """That images can be restored here, and looked into; nothing is told where fulls are of files."""
    if patient.config.use().backup.mode != "block":
        return
    try:
        e2fsprogs.check_tools(*_TOOLS)
    except VolumeError as error:
        yield fail(f"restore --device: cannot {error.what}: {error.why}", error.hint)
        return
    try:
        fuse.check_available()
    except VolumeError as error:
        yield warn(f"files of images are looked at through a temporary copy: {error.why}", error.hint)
    else:
        yield ok("they can be restored, and looked into")


CHECKS: Final = (Check("volume", "images", coming_back),)
