"""The environments that snapshots leave out, from the full that has judged them until they change."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable
from typing import Final

import msgspec

from smsnapd.engine.backup.looks import Hints
from smsnapd.engine.environment.judging import Judged
from smsnapd.engine.environment.prints import SETTLED_NS, take_print
from smsnapd.model import path_text

LEFT_OUT: Final = "environment that the report rebuilds"
"""Why a manifest has skipped it (FORMAT.md, section 7)."""

_decode = msgspec.msgpack.Decoder(list[Judged]).decode


class Leaving:
    """What is left out. `directories` are (device, inode), `back` the paths that no longer are."""

    def __init__(self, root: bytes) -> None:
        self._root = root
        self._held: list[Judged] = []
        self.directories: set[tuple[int, int]] = set()
        self.back: list[bytes] = []

    @property
    def held(self) -> tuple[Judged, ...]:
        """What is left out now."""
        return tuple(self._held)

    def hold(self, judged: Iterable[Judged], hints: Hints | None) -> None:
        """Leave these out, if they are now as they were when they were judged; the others come `back`.

        Where `hints` tell of no change there, nothing is looked at.
        """
        for environment in judged:
            place = os.path.join(self._root, environment.path)
            heard = hints is None or environment.linked or _is_touched(environment.path, hints)
            unchanged = not heard or _is_unchanged(place, environment)
            directory = _directory(place) if unchanged else None
            if directory is None:
                self.back.append(environment.path)
            else:
                self._held.append(environment)
                self.directories.add(directory)

    def saved(self) -> bytes:
        """What `restored` reads."""
        return msgspec.msgpack.encode(self._held)

    def told(self) -> str:
        """What is saved by it, in words; "" if nothing is left out."""
        if not self._held:
            return ""
        names = ", ".join(path_text(environment.path) for environment in self._held[:5])
        more = f" and {len(self._held) - 5} more" if len(self._held) > 5 else ""
        files = sum(environment.files for environment in self._held)
        size = sum(environment.size_bytes for environment in self._held) / 1e6
        return (
            f"left out, because `smsnap environment recreate` rebuilds it: {names}{more}; "
            f"that saves {files:,} files, {size:,.1f} MB"
        )


def restored(saved: bytes | None) -> list[Judged]:
    """What `Leaving.saved` has told; nothing if it is not understood."""
    try:
        return _decode(saved) if saved else []
    except msgspec.DecodeError:
        return []


def _is_touched(path: bytes, hints: Hints) -> bool:
    """Whether a hint tells of anything in the environment, of itself, or of all around it."""
    return any(
        hint == path or hint.startswith(path + b"/") or _is_above(hint, path)
        for hint in (*hints.directories, *hints.subtrees)
    )


def _is_above(hint: bytes, path: bytes) -> bool:
    return not hint or path.startswith(hint + b"/")


def _directory(place: bytes) -> tuple[int, int] | None:
    """Device and inode of a directory; None if it is none."""
    try:
        status = os.lstat(place)
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISDIR(status.st_mode) else None


def _is_unchanged(place: bytes, environment: Judged) -> bool:
    try:
        now = take_print(place)
    except (OSError, ValueError):
        return False
    return now.digest == environment.digest and now.newest_ns < time.time_ns() - SETTLED_NS
