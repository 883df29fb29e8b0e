"""What `restore --delete` removes: the names in the target that the snapshot has not.

Some are not in the snapshot, and no extras all the same: what the backup could not look at or left out by
its nature, the repository, the local index. They stay, and all directories above them.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes, urlsplit

from smsnapd.format.manifest import Completeness

if TYPE_CHECKING:
    from smsnapd.engine.restore.worklist import Worklist


class Extras:
    """Says for each directory that was selected whole what must stay in it.

    `unknown` are paths of which, and of all below them, the snapshot knows nothing; `own` are others to leave
    alone.
    """

    def __init__(
        self, plan: Worklist, selected: tuple[bytes, ...], unknown: Iterable[bytes], own: Iterable[bytes]
    ) -> None:
        self._plan = plan
        self._whole = not selected or b"" in selected
        self._selected = frozenset(selected)
        self._unknown = frozenset(unknown)
        self._spared: dict[bytes, set[bytes]] = defaultdict(set)
        for path in (*self._unknown, *own):
            self._spare(path)

    def directories(self) -> Iterator[tuple[bytes, set[bytes]]]:
        """Directories of the target, and the names in them that stay."""
        for directory, names in self._plan.names():
            if self._is_selected(directory) and not _is_within(directory, self._unknown):
                yield directory, names | self._spared.get(directory, set())

    def _spare(self, path: bytes) -> None:
        while path:
            path, _, name = path.rpartition(b"/")
            self._spared[path].add(name)

    def _is_selected(self, directory: bytes) -> bool:
        return self._whole or _is_within(directory, self._selected)


def unknown_paths(completeness: Completeness) -> list[bytes]:
    """The paths that a snapshot may lack although the volume had them."""
    return [issue.path for issue in (*completeness.incomplete, *completeness.skipped)]


def paths_within(target: bytes, places: Iterable[bytes]) -> list[bytes]:
    """Those of `places` that lie in the directory `target`, relative to it, symbolic links resolved."""
    root = os.path.realpath(target).rstrip(b"/") + b"/"
    found = [os.path.realpath(place) for place in places]
    return [place[len(root) :] for place in found if place.startswith(root)]


def directory_of(url: str) -> list[bytes]:
    """The directory of a repository that is one."""
    parts = urlsplit(url)
    return [unquote_to_bytes(parts.path)] if parts.scheme == "file" else []


def left_out(state_dir: Path, url: str) -> set[tuple[int, int]]:
    """What no backup may contain, by device and inode: the index, the repository if it is a directory."""
    paths = [os.fsencode(state_dir), *directory_of(url)]
    found = [os.stat(path) for path in paths if os.path.isdir(path)]
    return {(status.st_dev, status.st_ino) for status in found}


def _is_within(path: bytes, places: frozenset[bytes]) -> bool:
    while path and path not in places:
        path = path.rpartition(b"/")[0]
    return path in places
