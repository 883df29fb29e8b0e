"""What a volume was at the first start on it, and how far filling it from a recovery point has come.

Kept in a file beside the configuration, on the volume: lifecycle scripts ask it at every start.
"""

from __future__ import annotations

import os
import stat
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec

from smsnapd.errors import SmsnapError
from smsnapd.volume.tarball.marker import LOST_AND_FOUND, MARKER, PARTIAL

FILE = "first-start.json"
NEW = "new"
"""What on-create leaves there when it has made the directory: the volume was new then."""

_CHECKPOINTS = b".ipynb_checkpoints"
_HINT = "see that the volume is mounted and can be written to"


class FirstStart(msgspec.Struct, frozen=True):
    """`since_us` is when the volume was first seen; `new` says that it held no file of anybody's then.

    `wanted` and `by` are what it is to be filled with, as it was told, and who told it. `volume` and
    `snapshot` are the recovery point that was chosen then, which holds from then on. `failed` says why it
    could not be done, "" while nobody knows; `done` says what came of it, "" until it is done.
    """

    since_us: int
    new: bool
    wanted: str = ""
    by: str = ""
    volume: str = ""
    snapshot: str = ""
    failed: str = ""
    done: str = ""

    @property
    def is_under_way(self) -> bool:
        """Whether a restore was told, and has neither ended nor failed."""
        return bool(self.wanted) and not self.done and not self.failed


def first_start(directory: Path, root: bytes) -> FirstStart:
    """What this start is, if it is the first: nothing is recorded in `directory` yet, and nothing is now.

    `root` is the volume's. Raises SmsnapError if it cannot be read.
    """
    try:
        return FirstStart((directory / NEW).stat().st_mtime_ns // 1000, new=True)
    except OSError:  # on-create left no note: it never ran, or on another volume
        return FirstStart(time.time_ns() // 1000, new=not holds_files(root, (directory,)))


def recorded(directory: Path) -> FirstStart | None:
    """The record in `directory`, None if there is none; SmsnapError if it is not to be understood."""
    path = directory / FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=FirstStart)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SmsnapError(f"read {path}", error.strerror or str(error), _HINT) from error
    except msgspec.MsgspecError as error:
        hint = (
            "remove it: a volume that holds files is taken for an old one then, and nothing is restored to it"
        )
        raise SmsnapError(f"read {path}", str(error), hint) from error


def record(directory: Path, start: FirstStart) -> None:
    """Replace the record in `directory`, durably. on-create's note is taken up in it."""
    path = directory / FILE
    try:
        with tempfile.NamedTemporaryFile("wb", dir=directory, prefix=FILE, delete=False) as file:
            file.write(msgspec.json.format(msgspec.json.encode(start)) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(file.name, path)
        (directory / NEW).unlink(missing_ok=True)
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise SmsnapError(f"write {path}", error.strerror or str(error), _HINT) from error


def holds_files(root: bytes, own: Iterable[Path]) -> bool:
    """Whether the tree holds anything but directories, smsnapd's `own` places and what instances lay there.

    That is lost+found, checkpoints of notebooks, and the traces of a restore that was cut off. Stops at the
    first file. Raises SmsnapError if a directory cannot be read.
    """
    ours = {os.fsencode(place) for place in own}
    pending = [root]
    while pending:
        directory = pending.pop()
        for name, is_directory in _children(directory):
            path = os.path.join(directory, name)
            if path in ours or name == _CHECKPOINTS or (directory == root and name == LOST_AND_FOUND):
                continue
            if is_directory:
                pending.append(path)
            elif name != MARKER and not name.startswith(PARTIAL):
                return True
    return False


def _children(directory: bytes) -> list[tuple[bytes, bool]]:
    try:
        with os.scandir(directory) as children:
            return [
                (child.name, stat.S_ISDIR(child.stat(follow_symlinks=False).st_mode)) for child in children
            ]
    except FileNotFoundError:
        return []
    except OSError as error:
        what = f"see whether {os.fsdecode(directory)} holds files"
        raise SmsnapError(what, error.strerror or str(error), "run as root") from error
