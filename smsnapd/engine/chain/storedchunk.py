"""A chunk, sealed and put by this process; what runs store goes through the workers."""

from __future__ import annotations

from smsnapd.format import names
from smsnapd.format.codec import Context, ObjectType, chunk_hash, seal, stored_hash
from smsnapd.format.keys import DataKey
from smsnapd.model import ChunkRef
from smsnapd.repository import Repository


def put_chunk(
    repository: Repository, volume: str, data_key: DataKey, content: bytes, *, level: int
) -> ChunkRef:
    """Store `content`, whole blocks; the data key's object must be there. The write key suffices."""
    name_hash = chunk_hash(repository.volume_keys(volume).chunk_names, content)
    name = names.chunk_name(volume, name_hash, data_key.id)
    context = Context(repository.id, volume, name)
    sealed = seal(ObjectType.CHUNK, data_key.secret, data_key.id, context, content, level=level)
    repository.store.put(name, sealed)
    return ChunkRef(name_hash, data_key.id, len(content), len(sealed), stored_hash(sealed))
