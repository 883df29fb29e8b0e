"""The catalog of an arriving tree: entries get their headers, whose chunks are apart from the contents'."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from msgspec.structs import replace

from smsnapd.engine.chain.catalog import CatalogBuilder
from smsnapd.engine.chain.chunkwriter import ChunkWriter
from smsnapd.format.manifest import Owner, Owners
from smsnapd.model import CHUNK_TARGET, Entry, Extent, Kind, Listing, join_path
from smsnapd.state import TreeCounts
from smsnapd.volume.tarball.header import header

_NAMES_MAX: Final = 65_536
"""Owners whose names are kept: an archive may have as many as it has members."""
_NAME_MAX: Final = 255


@dataclass
class OwnerNames:
    """The names that an archive has for its users and groups; the first that came for an id holds."""

    users: dict[int, bytes] = field(default_factory=dict)
    groups: dict[int, bytes] = field(default_factory=dict)

    def note(self, uid: int, user: bytes, gid: int, group: bytes) -> None:
        """Take note of what a member says."""
        for names, number, name in ((self.users, uid, user), (self.groups, gid, group)):
            if 0 < len(name) <= _NAME_MAX and number not in names and len(names) < _NAMES_MAX:
                names[number] = name

    def owners(self) -> Owners:
        """As a manifest has them."""
        return Owners(*(tuple(_owners(names)) for names in (self.users, self.groups)))


def _owners(names: dict[int, bytes]) -> list[Owner]:
    return [Owner(number, names[number].decode("utf-8", "backslashreplace")) for number in sorted(names)]


class Recorder:
    """Takes listings in catalog order; packs and stores headers for them, and hands them to the catalog."""

    def __init__(self, chunks: ChunkWriter, catalog: CatalogBuilder, owners: OwnerNames) -> None:
        self._chunks = chunks
        self._catalog = catalog
        self._owners = owners
        self._headers = bytearray()
        self._waiting: list[Listing] = []
        self._entries = self._files = self._bytes = 0

    @property
    def counts(self) -> TreeCounts:
        """Entries, regular files and their bytes so far."""
        return TreeCounts(self._entries, self._files, self._bytes)

    def add(self, listing: Listing) -> None:
        """Take the next listing, its entries complete but for their headers."""
        entries = [self._with_header(listing.directory, entry) for entry in listing.entries]
        self._waiting.append(Listing(listing.directory, entries))
        if len(self._headers) >= CHUNK_TARGET:
            self._flush()

    def finish(self) -> None:
        """Store the last headers."""
        self._flush()

    def _with_header(self, directory: bytes, entry: Entry) -> Entry:
        """The entry with its header's place in the pack at hand; its contents' places settled."""
        self._entries += 1
        if entry.kind == Kind.REGULAR:
            self._files += 1
            self._bytes += entry.size
        user, group = self._owners.users.get(entry.uid, b""), self._owners.groups.get(entry.gid, b"")
        made = header(join_path(directory, entry.name), entry, user, group)
        place = Extent(0, len(self._headers), len(made))
        self._headers += made
        settled = self._chunks.settled
        content = tuple(Extent(settled(chunk), *rest) for chunk, *rest in entry.content)
        return replace(entry, header=place, content=content)

    def _flush(self) -> None:
        """Store the pack of headers; what waited for its number goes on."""
        if not self._headers:
            return
        number = self._chunks.settled(self._chunks.add(bytes(self._headers)))
        for listing in self._waiting:
            entries = [replace(entry, header=_in_chunk(entry.header, number)) for entry in listing.entries]
            self._catalog.add(Listing(listing.directory, entries))
        self._headers.clear()
        self._waiting.clear()


def _in_chunk(place: Extent | None, number: int) -> Extent:
    assert place is not None
    return place._replace(chunk=number)
