"""What a watcher could hear changes from, found out without starting one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from smsnapd.model import join_path
from smsnapd.volume.scan import Excludes
from smsnapd.volume.watch.admission import Admission
from smsnapd.volume.watch.fanotify import FanotifyGroup, HandlePaths


class DirectoryCount(NamedTuple):
    """How many directories a watcher has to watch; if not `is_all`, there are more."""

    directories: int
    is_all: bool


def fanotify_refusal(root: bytes) -> str:
    """Why fanotify cannot watch the file system of `root` (absolute), "" if it can.

    A mark is set, and gone again when this returns.
    """
    try:
        group = FanotifyGroup(root, unlimited_queue=True)
    except OSError as error:
        return error.strerror or str(error)
    try:
        HandlePaths(root, Admission(root, Excludes())).check()
    except OSError as error:
        return error.strerror or str(error)
    finally:
        group.close()
    return ""


def count_directories(
    root: bytes, excluded: Excludes, within_s: float, clock: Callable[[], float] = time.monotonic
) -> DirectoryCount:
    """Count what inotify would have to watch below `root`, itself included, for at most so many seconds.

    What cannot be listed counts as one. Raises `OSError` if the root is not there.
    """
    admission, device = Admission(root, excluded), os.stat(root).st_dev
    until_s = clock() + within_s
    pending, count = [b""], 0
    while pending:
        if clock() > until_s:
            return DirectoryCount(count + len(pending), False)
        directory = pending.pop()
        count += 1
        pending.extend(_below(root, directory, admission, device))
    return DirectoryCount(count, True)


def _below(root: bytes, directory: bytes, admission: Admission, device: int) -> Iterator[bytes]:
    """The directories in this one that are to be watched."""
    try:
        entries = os.scandir(os.path.join(root, directory))
    except OSError:
        return
    with entries:
        for entry in entries:
            try:
                wanted = entry.is_dir(follow_symlinks=False) and _is_wanted(
                    directory, entry, admission, device
                )
            except OSError:  # gone meanwhile
                continue
            if wanted:
                yield join_path(directory, entry.name)


def _is_wanted(directory: bytes, entry: os.DirEntry[bytes], admission: Admission, device: int) -> bool:
    status = entry.stat(follow_symlinks=False)
    if status.st_dev != device or admission.is_left_out(status):
        return False
    return not admission.matches(directory, entry.name, is_directory=True)
