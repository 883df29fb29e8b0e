"""Manifests: listed by name, loaded and verified, committed last and once."""

from __future__ import annotations

from dataclasses import dataclass

from smsnapd.errors import DamageError, ObjectMissingError
from smsnapd.format import names
from smsnapd.format.codec import parse_header
from smsnapd.format.manifest import Manifest, decode_manifest, encode_manifest, manifest_hash
from smsnapd.format.names import ManifestName
from smsnapd.repository.access import Repository
from smsnapd.repository.lease import Lease


@dataclass(frozen=True)
class Listed:
    """A volume's manifests, oldest first: those that count, and those that a higher generation fenced."""

    counting: tuple[ManifestName, ...]
    fenced: tuple[ManifestName, ...]


@dataclass(frozen=True)
class Recorded:
    """A manifest as it lies in the repository, verified, and the id of the writer that signed it."""

    name: ManifestName
    manifest: Manifest
    hash: bytes
    writer_id: bytes


def list_manifests(repository: Repository, volume: str) -> Listed:
    """One listing; no manifest is opened."""
    by_sequence: dict[int, ManifestName] = {}
    fenced: list[ManifestName] = []
    for info in repository.store.list(names.manifests_prefix(volume)):
        name = ManifestName.parse(info.name)
        if name is None:
            continue
        other = by_sequence.get(name.sequence)
        if other is not None and other.generation > name.generation:
            fenced.append(name)
            continue
        if other is not None:
            fenced.append(other)
        by_sequence[name.sequence] = name
    return Listed(tuple(by_sequence[number] for number in sorted(by_sequence)), tuple(fenced))


def load_manifest(repository: Repository, name: ManifestName) -> Recorded:
    """Get, open and verify one manifest. Whether its writer was revoked is for `History` to say."""
    object_name = name.object_name()
    try:
        data = repository.store.get(object_name)
    except ObjectMissingError as error:
        raise DamageError(f"read {object_name}", "the object is missing") from error
    manifest = decode_manifest(data, name, repository.id, repository.catalog_key_of, repository.verify_key_of)
    return Recorded(name, manifest, manifest_hash(data), parse_header(data).key_id)


def commit_manifest(repository: Repository, lease: Lease, manifest: Manifest, attachments: bytes) -> Recorded:
    """Make a recovery point: everything before it durable, the manifest put, the lease read again.

    LockedError if another writer has taken the lease: then nothing was saved.
    """
    name = manifest.name
    data = encode_manifest(manifest, repository.write_key, attachments)
    repository.store.barrier()
    lease.renew()
    repository.store.put(name.object_name(), data)
    repository.store.barrier()
    lease.confirm()
    return Recorded(name, manifest, manifest_hash(data), repository.writer_id)
