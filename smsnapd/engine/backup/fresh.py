"""Everything that a volume holds as one stream of changes, for a run whose index is empty.

Nothing is spooled: there is nothing that could have been renamed, and the first name of an inode is the one
that comes first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from msgspec.structs import replace

from smsnapd.engine.backup.changes import Change, DirectoryChange
from smsnapd.model import Entry, Flag, Kind, Listing, join_path
from smsnapd.state import has_names

_ALIAS: Final = int(Flag.ALIAS)
_REGULAR: Final = int(Kind.REGULAR)
_DIRECTORY: Final = int(Kind.DIRECTORY)


class FreshTree:
    """The changes of a volume that nothing is known of; in the place of a `ChangeSet`.

    The counts are of what was taken from the stream so far, and final at its end.
    """

    deleted: Final = 0
    bytes_to_compare: Final = 0
    empty: Final = False

    def __init__(self, scanned: Iterable[Listing]) -> None:
        """`scanned` are all listings of the volume, in catalog order."""
        self._scanned = iter(scanned)
        self._ahead: list[DirectoryChange] = []
        self._first_names: dict[int, bytes] = {}
        self.settled: dict[bytes, list[Entry]] = {}
        self.changed = 0
        self.files_to_read = 0
        self.bytes_to_read = 0
        self.is_counted = False
        """Whether the counts are final."""

    def close(self) -> None:
        """Nothing is held."""

    def look_ahead(self, entries: int, size: int, renew: Callable[[], None]) -> None:
        """Take from the stream until there are so many entries or bytes to read, or it ends.

        `renew` is called for each directory: that it takes long must not end the lease.
        """
        while self.changed <= entries and self.bytes_to_read <= size and not self.is_counted:
            renew()
            self._ahead += self._next()

    def directories(self) -> Iterator[DirectoryChange]:
        """The changes in catalog order, once."""
        while self._ahead:
            ahead, self._ahead = self._ahead, []
            yield from ahead
        while not self.is_counted:
            yield from self._next()

    def _next(self) -> list[DirectoryChange]:
        """The next directory; none at the end."""
        listing = next(self._scanned, None)
        if listing is None:
            self.is_counted = True
            return []
        directory, entries = listing
        sizes = [entry.size for entry in entries if entry.kind == _REGULAR]
        self.changed += len(entries)
        self.files_to_read += len(sizes)
        self.bytes_to_read += sum(sizes)
        if [entry for entry in entries if entry.links > 1 and entry.kind != _DIRECTORY]:
            entries = [self._named(directory, entry) if has_names(entry) else entry for entry in entries]
        return [DirectoryChange(directory, [Change(entry, None) for entry in entries], [])]

    def _named(self, directory: bytes, entry: Entry) -> Entry:
        """An entry whose inode has several names: an alias, unless it is the first one."""
        path = join_path(directory, entry.name)
        first = self._first_names.setdefault(entry.inode, path)
        return entry if first == path else replace(entry, flags=_ALIAS, target=first)
