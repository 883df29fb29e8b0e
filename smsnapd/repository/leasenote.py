"""What a writer notes of its lease beside the local index, so that it knows its own after a power cut.

A lease says which process holds it, and whether that lives can be known on the same boot of the same machine
alone. A notebook that is switched off leaves a lease behind that nobody gives back, and its next start would
wait for the end of it. The note tells: it has the holder's own words, with a random token, and its writer
keeps it locked (flock(2)) for as long as it lives. A copy of the volume in another notebook has the note
too: so it counts only at the place where it was written.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
from pathlib import Path
from types import TracebackType

from smsnapd.repository.lease import is_dead

log = logging.getLogger(__name__)

_LONGEST = 4096


class LeaseNote:
    """One volume's note, open. Who cannot lock or write it goes on without. For one thread."""

    def __init__(self, path: Path, place: str) -> None:
        """`path` is made if its directory is there; `place` names the machine and the file system of it."""
        self._path = path
        self._place = place
        self._descriptor = -1
        self._noted = ""
        try:
            self._lock()
        except OSError as error:
            log.info("the lease is not noted in %s: %s", path, error.strerror or error)
            self.close()

    def __enter__(self) -> LeaseNote:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def is_dead(self, holder: str) -> bool:
        """Whether the holder of a lease is no more: as can be seen, or since it was the note's writer."""
        return is_dead(holder) or (bool(holder) and holder == self._noted)

    def keep(self, holder: str) -> None:
        """Note this holder, durably: the lease is its."""
        if self._descriptor < 0:
            return
        try:
            self._write(json.dumps({"holder": holder, "place": self._place}).encode())
        except OSError as error:
            log.info("the lease is not noted in %s: %s", self._path, error.strerror or error)

    def close(self) -> None:
        """Let go of it: who opens it next may take what is noted for dead."""
        self._noted = ""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _lock(self) -> None:
        # For reading: an open file that can be written to would keep the volume from becoming read-only.
        flags = os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        self._descriptor = os.open(self._path, flags, 0o600)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # What is torn, or none of ours, says nothing.
        with contextlib.suppress(ValueError, KeyError, TypeError):
            noted = json.loads(os.pread(self._descriptor, _LONGEST, 0))
            if noted["place"] == self._place:
                self._noted = str(noted["holder"])

    def _write(self, data: bytes) -> None:
        """In place, since the lock is the file's. What is torn by a crash says nothing."""
        descriptor = os.open(self._path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.pwrite(descriptor, data, 0)
            os.ftruncate(descriptor, len(data))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
