"""Moving this program off a mounted file system that it runs from, so that its device can be overwritten.

What the program needs is copied to another file system; in a mount namespace of its own the copy then takes
the volume's place, under the same paths, and the program begins again from there. Where it came from nothing
has changed until then: if it dies, the volume is mounted as it was.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NoReturn

import msgspec

from smsnapd.errors import DamageError, TargetError
from smsnapd.model import path_text
from smsnapd.volume.mounts import find_mount, mounted_devices
from smsnapd.volume.namespace import bind, current_namespace, detach, separate

_VARIABLE: Final = "SMSNAP_DEPARTED"
_PLACES: Final = ("/run", "/var/tmp", "/dev/shm")
_SPARE: Final = 64 * 1024 * 1024
_PREFIX: Final = "smsnap-departed-"


class Departed(msgspec.Struct, frozen=True):
    """Where the program came from.

    `namespace` is a descriptor of its mounts then; `stage` the directory that holds the copy; `points` where
    the volume is mounted there, its root last; `device` its number as "major:minor"; `options` its mount's.
    """

    namespace: int
    stage: str
    points: list[str]
    device: str
    fs_type: str
    options: list[str]

    @property
    def point(self) -> str:
        """The place that the program takes for the volume."""
        return self.points[-1]


def departed() -> Departed | None:
    """Where this program came from; None if it has not moved. DamageError if its environment is nonsense."""
    text = os.environ.get(_VARIABLE)
    if not text:
        return None
    try:
        found = msgspec.json.decode(text, type=Departed)
        if os.path.samestat(os.stat(found.stage), os.stat(found.point)):
            return found
    except (msgspec.MsgspecError, OSError) as error:
        raise DamageError(f"understand {_VARIABLE}", str(error), f"unset {_VARIABLE}") from error
    raise DamageError(f"understand {_VARIABLE}", "nothing was moved here", f"unset {_VARIABLE}")


def depart(volume: bytes, needed: Iterable[bytes]) -> NoReturn:
    """Move off the file system that carries `volume`, and begin again, with the same arguments.

    `needed` are files and directories, absolute; of them, and of Python and this package, what lies on the
    file system is copied. Raises TargetError if there is no room for it; VolumeError, as root alone may.
    """
    mount = find_mount(volume)
    others = set(mounted_devices()[mount.device]) - {mount.mount_point}
    points = [*sorted(others, key=len, reverse=True), mount.mount_point]
    number = os.stat(mount.mount_point).st_dev
    places = {path for path in (*map(os.path.realpath, needed), *_own_places()) if _lies_on(path, number)}
    stage = _stage(places, mount.mount_point, number)
    directory = os.getcwdb()
    there = Departed(
        current_namespace(),
        os.fsdecode(stage),
        [os.fsdecode(point) for point in points],
        mount.device,
        mount.fs_type,
        [*mount.options],
    )
    if _lies_on(directory, number):
        os.makedirs(_in_stage(stage, mount.mount_point, directory), exist_ok=True)
    os.chdir("/")
    separate(hears=False)
    for point in points:
        detach(point)
    bind(stage, mount.mount_point)
    os.chdir(directory)
    environment = {**os.environ, _VARIABLE: msgspec.json.encode(there).decode()}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def _own_places() -> set[bytes]:
    """Where Python and what it has loaded lie; the modules of an environment come with the environment."""
    prefixes = {os.path.realpath(os.fsencode(place)) for place in (sys.prefix, sys.base_prefix)}
    prefixes.add(os.path.dirname(os.path.realpath(os.fsencode(sys.executable))))
    loaded = set()
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file and "." not in name:
            is_package = os.path.basename(file).startswith("__init__.")
            loaded.add(os.path.realpath(os.fsencode(os.path.dirname(file) if is_package else file)))
    inside = tuple(place + b"/" for place in prefixes)
    return prefixes | {path for path in loaded if not path.startswith(inside)}


def _lies_on(path: bytes, device: int) -> bool:
    try:
        return os.stat(path).st_dev == device
    except FileNotFoundError:
        return False


def _in_stage(stage: bytes, point: bytes, path: bytes) -> bytes:
    return os.path.join(stage, os.path.relpath(path, point))


def _stage(places: set[bytes], point: bytes, device: int) -> bytes:
    """A directory on another file system with copies of `places`, under the same paths."""
    size = sum(map(_size, places))
    for place in _PLACES:
        with contextlib.suppress(FileNotFoundError):
            if os.stat(place).st_dev != device and shutil.disk_usage(place).free > size + _SPARE:
                stage = os.fsencode(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
                try:
                    for path in sorted(places):
                        _copy(path, _in_stage(stage, point, path))
                except BaseException:
                    shutil.rmtree(stage, ignore_errors=True)
                    raise
                return stage
    why = f"the program and what it needs take {size:,} bytes, and neither of {', '.join(_PLACES)} has room"
    raise TargetError(f"move off {path_text(point)}", why, "make room in one of them")


def _size(path: bytes) -> int:
    if not os.path.isdir(path):
        return os.stat(path).st_size
    files = (os.path.join(directory, name) for directory, _, names in os.walk(path) for name in names)
    return sum(os.lstat(file).st_size for file in files)


def _copy(path: bytes, copy: bytes) -> None:
    os.makedirs(os.path.dirname(copy), exist_ok=True)
    if os.path.isdir(path):
        shutil.copytree(os.fsdecode(path), os.fsdecode(copy), symlinks=True, dirs_exist_ok=True)
    elif not os.path.exists(copy):
        shutil.copy2(path, copy)


def remove_stage(found: Departed) -> None:
    """Remove the copy, as the last thing that this program does; nothing can be loaded from it then."""
    if Path(found.stage).name.startswith(_PREFIX):
        shutil.rmtree(found.stage, ignore_errors=True)
