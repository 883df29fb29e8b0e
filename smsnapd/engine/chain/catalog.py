"""A snapshot's catalog, sealed and stored segment by segment, and what goes attached to its manifest."""

from __future__ import annotations

import grp
import pwd
from collections.abc import Callable, Container, Iterable, Iterator
from functools import cached_property

from smsnapd.errors import ObjectExistsError
from smsnapd.format import names
from smsnapd.format.catalog import CatalogWriter, halve_segment
from smsnapd.format.codec import Context, ObjectType, chunk_hash, open_sealed, seal, stored_hash
from smsnapd.format.keys import WriteKey
from smsnapd.format.manifest import Owner, Owners
from smsnapd.model import ChunkRef, Listing
from smsnapd.repository import Repository
from smsnapd.repository.garbage import GarbageBelow

CATALOG_LEVEL = 3


class CatalogBuilder:
    """Takes listings in catalog order; seals and stores their segments.

    `rows` maps chunk numbers of the run to rows of the manifest's chunk table, in order of first use. The
    segments are those of `write_key`, by default of the repository's.
    """

    def __init__(
        self,
        repository: Repository,
        volume: str,
        attach_limit: int,
        *,
        write_key: WriteKey | None = None,
        rows: dict[int, int] | None = None,
    ) -> None:
        self._repository = repository
        self._volume = volume
        self._key = write_key or repository.write_key
        self._names_key = self._key.volume(volume).catalog_names
        self.rows: dict[int, int] = {} if rows is None else rows
        self._writer = CatalogWriter(rows=self.rows)
        self._attachable = attach_limit
        self._uids: set[int] = set()
        self._gids: set[int] = set()
        self.segments: list[tuple[ChunkRef, bytes]] = []
        self.stored_bytes = 0

    def add(self, listing: Listing) -> None:
        """Take the next listing; one without entries is nothing."""
        if not listing.entries:
            return
        self._uids.update(entry.uid for entry in listing.entries)
        self._gids.update(entry.gid for entry in listing.entries)
        for segment in self._writer.add(listing):
            self.store(segment)

    def finish(self) -> None:
        """Store the last segment."""
        for segment in self._writer.finish():
            self.store(segment)

    def store(self, content: bytes) -> None:
        """Seal a segment that is made; `segments` gets its place and, if it is to be attached, its bytes."""
        key = self._key
        name_hash = chunk_hash(self._names_key, content)
        name = names.catalog_name(self._volume, name_hash, key.writer_id)
        context = Context(self._repository.id, self._volume, name)
        sealed = seal(
            ObjectType.CATALOG, key.catalog_key, key.writer_id, context, content, level=CATALOG_LEVEL
        )
        ref = ChunkRef(name_hash, key.writer_id, len(content), len(sealed), stored_hash(sealed))
        if len(sealed) <= self._attachable:
            self._attachable -= len(sealed)
            self._keep(ref, sealed, sealed)
        elif name not in self._garbage:
            self._keep(self._put(name, sealed, ref, context), sealed)
        elif (halves := halve_segment(content)) is not None:
            for half in halves:
                self.store(half)
        else:
            self._keep(ref, sealed, sealed)

    @cached_property
    def _garbage(self) -> Container[str]:
        """The segments that must not be used: a sweep may be about to delete them, whether there or not.

        While the lease is held no list is added.
        """
        return GarbageBelow(self._repository, self._volume, names.catalogs_prefix(self._volume))

    def _keep(self, ref: ChunkRef, sealed: bytes, attached: bytes = b"") -> None:
        self.stored_bytes += len(sealed)
        self.segments.append((ref, attached))

    def _put(self, name: str, sealed: bytes, ref: ChunkRef, context: Context) -> ChunkRef:
        try:
            self._repository.store.put(name, sealed)
        except ObjectExistsError:
            # The same content, stored before under another salt: by a run cut off, or unchanged since.
            stored = self._repository.store.get(name)
            open_sealed(stored, ObjectType.CATALOG, self._key.catalog_key, context)
            return ChunkRef(ref.name_hash, ref.key_id, ref.length, len(stored), stored_hash(stored))
        return ref

    def owners(self) -> Owners:
        """The names of the users and groups of the entries taken."""
        return Owners(
            tuple(_named(sorted(self._uids), lambda uid: pwd.getpwuid(uid).pw_name)),
            tuple(_named(sorted(self._gids), lambda gid: grp.getgrgid(gid).gr_name)),
        )


def _named(ids: Iterable[int], name_of: Callable[[int], str]) -> Iterator[Owner]:
    for number in ids:
        try:
            yield Owner(number, name_of(number))
        except KeyError:
            continue


class Attachments:
    """The sealed objects that go with a manifest, and their places."""

    def __init__(self, manifest_name: str) -> None:
        self._manifest_name = manifest_name
        self._data = bytearray()

    def add(self, ref: ChunkRef, sealed: bytes) -> ChunkRef:
        """Attach an object; where it lies now. Without bytes it is an object of its own and stays so."""
        if not sealed:
            return ref
        offset = len(self._data)
        self._data += sealed
        return ChunkRef(
            ref.name_hash,
            ref.key_id,
            ref.length,
            ref.stored_length,
            ref.stored_hash,
            self._manifest_name,
            offset,
        )

    def data(self) -> bytes:
        """All of them, joined."""
        return bytes(self._data)
