"""Bringing what is written to a target to its disk while it is written."""

from __future__ import annotations

import os
import threading
from types import TracebackType
from typing import Final

from smsnapd.errors import VolumeError
from smsnapd.volume.mounts import syncfs

INTERVAL_S: Final = 3.0
"""Seconds between the end of one writing back and the start of the next."""


class EarlyWriteback:
    """Keeps the disk below a directory busy, in a thread, for the length of a `with` statement.

    By itself the kernel begins to write when a tenth of the memory is dirty: a disk that idled until then has
    all the more to do in the sync at the end, when the cores idle. Nothing is promised here, and a failure
    is told to nobody: the kernel tells it once by each open descriptor, so who syncs by his own will hear.
    """

    def __init__(self, root_fd: int) -> None:
        self._fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root_fd)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="writeback")

    def __enter__(self) -> EarlyWriteback:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        os.close(self._fd)

    def _run(self) -> None:
        while not self._over.wait(INTERVAL_S):
            try:
                syncfs(self._fd)
            except VolumeError:
                return
