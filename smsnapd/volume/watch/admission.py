"""What the watcher keeps quiet about: names and directories that no backup contains."""

from __future__ import annotations

import os
from typing import Final

from smsnapd.model import join_path
from smsnapd.volume.scan import Excludes


class Admission:
    """Asks `Excludes` about the names and directories of events, and remembers the answers on directories.

    For one thread. A directory is looked at by its path, so whoever hears that directories were renamed says
    `forget`.
    """

    def __init__(self, root: bytes, excluded: Excludes, *, limit: int = 65536) -> None:
        """`root` is absolute; `limit` bounds how many answers are remembered."""
        self._root = root
        self._excluded = excluded
        self._limit = limit
        self._admitted: dict[bytes, bool] = {b"": True}
        self.has_patterns: Final = excluded.has_patterns
        """Without patterns every name in an admitted directory matters."""

    def forget(self) -> None:
        """Directories were renamed: ask again."""
        self._admitted = {b"": True}

    def admits(self, directory: bytes) -> bool:
        """Whether a scan would list this directory: neither it nor one above it is excluded."""
        known = self._admitted.get(directory)
        return self._ask(directory) if known is None else known

    def matches(self, directory: bytes, name: bytes, *, is_directory: bool) -> bool:
        """Whether a pattern leaves out `name` in `directory`."""
        if not self.has_patterns:
            return False
        path = os.fsdecode(join_path(directory, name))
        return self._excluded.matches(path + "/" if is_directory else path)

    def is_left_out(self, status: os.stat_result) -> bool:
        """Whether this is one of the directories that stay out under any name."""
        return (status.st_dev, status.st_ino) in self._excluded.directories

    def _ask(self, directory: bytes) -> bool:
        """Find out, and remember, for every directory on the way down to this one."""
        if len(self._admitted) >= self._limit:
            self.forget()
        path, admitted = b"", True
        for name in directory.split(b"/"):
            parent, path = path, join_path(path, name)
            known = self._admitted.get(path)
            if known is None:
                known = admitted and self._is_admitted_itself(parent, name)
                self._admitted[path] = known
            admitted = known
        return admitted

    def _is_admitted_itself(self, parent: bytes, name: bytes) -> bool:
        if self.matches(parent, name, is_directory=True):
            return False
        if not self._excluded.directories:
            return True
        try:
            status = os.lstat(os.path.join(self._root, parent, name))
        except OSError:
            # Gone, or out of reach: a hint too many does no harm, one too few does.
            return True
        return not self.is_left_out(status)
