"""The tools of e2fsprogs, run on an ext4 that is not mounted: described, made whole, grown, made anew."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from typing import Final

from smsnapd.errors import TargetError, VolumeError
from smsnapd.model import path_text

_INSTALL: Final = "install e2fsprogs (dnf or apt-get install e2fsprogs)"
_WHOLE: Final = (0, 1, 2)
"""Exit statuses of e2fsck(8) after which the file system is whole."""
_BYTES_PER_INODE: Final = 16384
_PASSING_FEATURES: Final = frozenset(
    {"needs_recovery", "orphan_present", "journal_dev", "shared_blocks", "verity"}
)
"""What dumpe2fs lists of a moment or a content, and nobody can ask mkfs for."""


@dataclass(frozen=True)
class Description:
    """What an ext4 is like. `reserved` is root's share of the blocks in percent, `features` as for mkfs."""

    block_size: int
    blocks: int
    free_blocks: int
    inodes: int
    free_inodes: int
    inode_size: int
    uuid: str
    label: str
    reserved: float
    features: tuple[str, ...]

    @property
    def size(self) -> int:
        """Of the file system, in bytes."""
        return self.blocks * self.block_size

    @property
    def free_bytes(self) -> int:
        """That files could take, those of root included."""
        return self.free_blocks * self.block_size


def check_tools(*names: str) -> None:
    """VolumeError that says what to install, if one of these programs is not there."""
    for name in names:
        _program(name)


def describe(path: bytes) -> Description:
    """What the ext4 on a device or file is like (dumpe2fs -h); VolumeError if there is none."""
    done = _run("dumpe2fs", "-h", path)
    pairs = (line.partition(":") for line in done.stdout.decode(errors="replace").splitlines())
    told = {name.strip(): value.strip() for name, _, value in pairs}
    try:
        blocks = int(told["Block count"])
        label = told["Filesystem volume name"]
        return Description(
            block_size=int(told["Block size"]),
            blocks=blocks,
            free_blocks=int(told["Free blocks"]),
            inodes=int(told["Inode count"]),
            free_inodes=int(told["Free inodes"]),
            inode_size=int(told.get("Inode size", "128")),
            uuid=told["Filesystem UUID"],
            label="" if label == "<none>" else label,
            reserved=int(told["Reserved block count"]) * 100 / max(blocks, 1),
            features=tuple(set(told["Filesystem features"].split()) - _PASSING_FEATURES),
        )
    except (KeyError, ValueError) as error:
        why = _last_line(done) or "dumpe2fs does not understand it"
        raise VolumeError(f"read the file system on {path_text(path)}", why) from error


def clean(path: bytes) -> None:
    """Leave the ext4 on an unmounted device or file whole and clean: journal replayed, orphans removed.

    e2fsck -p; TargetError if it finds what it dares not mend alone.
    """
    done = _run("e2fsck", "-f", "-p", path)
    if done.returncode not in _WHOLE:
        raise TargetError(
            f"check the file system that was written to {path_text(path)}",
            _last_line(done) or f"e2fsck ended with status {done.returncode}",
            f"`e2fsck -fn {path_text(path)}` shows all, `e2fsck -fy` mends it; or restore an earlier point",
        )


def grow(path: bytes) -> None:
    """Have the ext4 on an unmounted device or file use all of it. Call `clean` before."""
    done = _run("resize2fs", path)
    if done.returncode:
        raise TargetError(f"grow the file system on {path_text(path)}", _last_line(done))


def make(path: bytes, like: Description, inodes: int) -> None:
    """Make an empty ext4 on a device or file, of another's identity and features, with room for `inodes`."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
    count = max(inodes + inodes // 8 + 1024, size // _BYTES_PER_INODE)
    numbers = ("-b", like.block_size, "-I", like.inode_size, "-N", count, "-m", f"{like.reserved:.2f}")
    names = ("-U", like.uuid, "-L", like.label, "-O", ",".join(("none", *like.features)))
    lazily = ("-E", "lazy_itable_init=1,nodiscard")
    done = _run("mkfs.ext4", "-F", "-q", *map(str, numbers), *names, *lazily, path)
    if done.returncode:
        raise TargetError(f"make a file system on {path_text(path)}", _last_line(done), "is it large enough?")


def capacity(size: int, like: Description, inodes: int) -> int:
    """Bytes that an ext4 of `size` bytes, made as `make` would, has free; tried on a sparse file."""
    with tempfile.NamedTemporaryFile(prefix="smsnap-", suffix=".ext4", dir=scratch()) as file:
        os.ftruncate(file.fileno(), size)
        make(os.fsencode(file.name), like, inodes)
        return describe(os.fsencode(file.name)).free_bytes


def scratch() -> str:
    """A place on disk for working files: /tmp may be memory."""
    return "/var/tmp" if os.access("/var/tmp", os.W_OK) else tempfile.gettempdir()


def _program(name: str) -> str:
    """Where a program lies; an ordinary user's PATH often lacks sbin."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin:/usr/local/sbin")
    if found is None:
        raise VolumeError(f"run {name}", "it is not installed", _INSTALL)
    return found


def _run(name: str, *arguments: str | bytes) -> subprocess.CompletedProcess[bytes]:
    # What it prints is quoted in errors: in English, like the rest.
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
    return subprocess.run(
        [_program(name), *arguments],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        check=False,
        env=environment,
    )


def _last_line(done: subprocess.CompletedProcess[bytes]) -> str:
    lines = (done.stdout + done.stderr).decode(errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), f"status {done.returncode}")
