"""Who uses a file system, so that it cannot be unmounted or made read-only: of proc_pid_fd(5) and its kin."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Holder(NamedTuple):
    """A process, and one thing of the file system that it uses; `writes`: a file that is open for writing."""

    pid: int
    name: str
    path: str
    writes: bool


def holders_of(device: int) -> list[Holder]:
    """The processes that use the file system with this `st_dev`, this one left out; those that write first.

    Without root only one's own are seen.
    """
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        # A process may end while it is looked at, and may not be ours to look at.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            used = sorted(_used(entry, device), key=lambda item: not item[1])
            if used:
                path, writes = used[0]
                found.append(Holder(int(entry.name), (entry / "comm").read_text().strip(), path, writes))
    return sorted(found, key=lambda holder: (not holder.writes, holder.pid))


def _used(process: Path, device: int) -> Iterator[tuple[str, bool]]:
    for link in (process / "cwd", process / "root", process / "exe", *(process / "fd").iterdir()):
        with contextlib.suppress(FileNotFoundError):
            if link.stat().st_dev == device:
                yield os.readlink(link), link.parent.name == "fd" and _is_writing(process, link.name)
    number = f"{os.major(device):02x}:{os.minor(device):02x}"
    for line in (process / "maps").read_text(errors="surrogateescape").splitlines():
        fields = line.split(maxsplit=5)
        if fields[3] == number:
            yield fields[-1], "w" in fields[1] and "s" in fields[1]


def _is_writing(process: Path, descriptor: str) -> bool:
    for line in (process / "fdinfo" / descriptor).read_text().splitlines():
        if line.startswith("flags:"):
            return int(line.split()[1], 8) & os.O_ACCMODE != os.O_RDONLY
    return False
