"""Chunks and catalog segments, opened: fetched, held against their hashes, decrypted, named again."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from smsnapd.errors import DamageError, ObjectMissingError
from smsnapd.format import names
from smsnapd.format.codec import Context, ObjectType, chunk_hash, open_sealed, parse_header, stored_hash
from smsnapd.model import ChunkRef
from smsnapd.store.base import Store

MANIFESTS_HELD: Final = 4


class Fetcher:
    """Gets sealed objects of one volume, attached ones out of their manifests."""

    def __init__(self, store: Store, volume: str) -> None:
        self._store = store
        self._volume = volume
        self._manifests: OrderedDict[str, bytes] = OrderedDict()
        self._held: dict[str, bytes] = {}
        self.fetched_bytes = 0

    def hold(self, manifest: str, attachments: bytes) -> None:
        """These are the attachments of the manifest of this name."""
        self._held[manifest] = attachments

    def fetch(self, ref: ChunkRef, name: str) -> bytes | memoryview:
        """The sealed bytes of an object, verified against the manifest that names it."""
        data: bytes | memoryview | None
        data = self._attached(ref) if ref.manifest else None
        if data is None:
            data = self._whole(name)
        if len(data) != ref.stored_length or stored_hash(data) != ref.stored_hash:
            raise DamageError(f"read {ref.manifest or name}", "its bytes are not what was stored")
        return data

    def _whole(self, name: str) -> bytes:
        try:
            data = self._store.get(name)
        except ObjectMissingError as error:
            hint = "if a prune has removed its snapshot meanwhile, take another one; else run `smsnap check`"
            raise DamageError(f"read {name}", "the object is missing", hint) from error
        self.fetched_bytes += len(data)
        return data

    def _attached(self, ref: ChunkRef) -> memoryview | None:
        """The object out of its manifest; None if that is gone, since then it has become one of its own."""
        held = self._held.get(ref.manifest)
        if held is not None:
            return memoryview(held)[ref.offset : ref.offset + ref.stored_length]
        data = self._manifests.get(ref.manifest)
        if data is None:
            try:
                data = self._store.get(ref.manifest)
            except ObjectMissingError:
                return None
            self.fetched_bytes += len(data)
            self._manifests[ref.manifest] = data
            if len(self._manifests) > MANIFESTS_HELD:
                self._manifests.popitem(last=False)
        start = parse_header(data, f"read {ref.manifest}").sealed_size + ref.offset
        return memoryview(data)[start : start + ref.stored_length]


class CatalogOpener:
    """Opens catalog segments of one writer."""

    def __init__(
        self, fetcher: Fetcher, repository_id: bytes, volume: str, key: bytes, names_key: bytes
    ) -> None:
        self._fetcher = fetcher
        self._repository_id = repository_id
        self._volume = volume
        self._key = key
        self._names_key = names_key

    def open(self, ref: ChunkRef) -> bytes:
        """A segment's content, every check passed."""
        name = names.catalog_name(self._volume, ref.name_hash, ref.key_id)
        context = Context(self._repository_id, self._volume, name)
        data = self._fetcher.fetch(ref, name)
        content = open_sealed(data, ObjectType.CATALOG, self._key, context)
        if chunk_hash(self._names_key, content) != ref.name_hash:
            raise DamageError(f"read {name}", "its content does not have the hash in its name")
        return content


class ChunkOpener:
    """Opens chunks of one volume with data keys that were opened before, by their ids.

    `names_keys` are the chunk-name keys of the volume's writers: a chunk's name must be its content's hash
    under the key of the writer that stored it.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        repository_id: bytes,
        volume: str,
        data_keys: dict[bytes, bytes],
        names_keys: tuple[bytes, ...],
    ) -> None:
        self._fetcher = fetcher
        self._repository_id = repository_id
        self._volume = volume
        self._data_keys = data_keys
        self._names_keys = names_keys

    def open(self, ref: ChunkRef) -> bytes:
        """A chunk's content, every check passed."""
        name = names.chunk_name(self._volume, ref.name_hash, ref.key_id)
        context = Context(self._repository_id, self._volume, name)
        secret = self._data_keys.get(ref.key_id)
        if secret is None:
            key_name = names.data_key_name(self._volume, ref.key_id)
            raise DamageError(f"read {name}", f"its data key {key_name} is missing or damaged")
        data = self._fetcher.fetch(ref, name)
        content = open_sealed(data, ObjectType.CHUNK, secret, context)
        if len(content) != ref.length:
            raise DamageError(f"read {name}", f"it holds {len(content)} bytes and not {ref.length}")
        if not any(chunk_hash(key, content) == ref.name_hash for key in self._names_keys):
            why = "its content does not have the hash in its name, by no writer's key that can be opened"
            raise DamageError(f"read {name}", why)
        return content
