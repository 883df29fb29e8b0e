"""Which inotify watch is which directory: a tree of names that survives renames, deletions and surprises."""

from __future__ import annotations

import time
from collections import deque
from typing import Final


class Directory:
    """A watched directory. Its path is that of its parent with its name, whatever they are by now."""

    __slots__ = ("children", "name", "parent", "watch")

    def __init__(self, parent: Directory | None, name: bytes, watch: int) -> None:
        self.parent = parent
        self.name = name
        self.watch = watch
        self.children: dict[bytes, Directory] = {}


class Directories:
    """All watched directories below one root, by watch descriptor and by name. Not for several threads.

    A watch stays with the inode, so a directory that was renamed within the root keeps its watch, and one
    that was moved out of it does so too. What is detached here therefore stays known by its watch for a
    while: it is bound anew if it turns up elsewhere below the root, and else `expired` hands out its watch
    for removal.
    """

    def __init__(self, watch: int) -> None:
        """`watch` is that of the root."""
        self.root: Final = Directory(None, b"", watch)
        self._by_watch: dict[int, Directory] = {watch: self.root}
        self._detached: deque[tuple[Directory, float]] = deque()

    def __len__(self) -> int:
        return len(self._by_watch)

    @property
    def has_detached(self) -> bool:
        """Whether `expired` will have something to hand out."""
        return bool(self._detached)

    def get(self, watch: int) -> Directory | None:
        """The directory of a watch, if it is known."""
        return self._by_watch.get(watch)

    def path(self, directory: Directory) -> bytes | None:
        """Its path relative to the root; None if it is detached, or lies below one that is."""
        parts = []
        node: Directory | None = directory
        while node is not None and node is not self.root:
            parts.append(node.name)
            node = node.parent
        return b"/".join(reversed(parts)) if node is not None else None

    def is_bound(self, directory: Directory, watch: int) -> bool:
        """Whether this watch is this directory's, for both sides."""
        return directory.watch == watch and self._by_watch.get(watch) is directory

    def bind(self, parent: Directory, name: bytes, watch: int) -> Directory:
        """The watch is now that of `name` in `parent`, whatever it was before."""
        self.detach(parent, name)
        directory = Directory(parent, name, watch)
        parent.children[name] = directory
        before = self._by_watch.get(watch)
        self._by_watch[watch] = directory
        if before is not None:
            self._take_off(before)
        return directory

    def detach(self, parent: Directory, name: bytes) -> None:
        """Nothing is known any more of `name` in `parent` and what lies below."""
        directory = parent.children.pop(name, None)
        if directory is not None:
            directory.parent = None
            self._detached.append((directory, time.monotonic()))

    def remove(self, watch: int) -> Directory | None:
        """The kernel has ended this watch; the directory that it was, if it is known."""
        directory = self._by_watch.pop(watch, None)
        if directory is not None:
            self._take_off(directory)
        return directory

    def expired(self, before_s: float) -> list[int]:
        """The watches of what was detached before this time and turned up nowhere, which are forgotten."""
        watches: list[int] = []
        while self._detached and self._detached[0][1] <= before_s:
            stack = [self._detached.popleft()[0]]
            while stack:
                directory = stack.pop()
                stack.extend(directory.children.values())
                if self._by_watch.get(directory.watch) is directory:
                    del self._by_watch[directory.watch]
                    watches.append(directory.watch)
        return watches

    def _take_off(self, directory: Directory) -> None:
        """Take it out of its parent, if it is still there; what lies below is detached."""
        parent = directory.parent
        if parent is not None and parent.children.get(directory.name) is directory:
            del parent.children[directory.name]
        directory.parent = None
        if directory.children:
            self._detached.append((directory, time.monotonic()))
