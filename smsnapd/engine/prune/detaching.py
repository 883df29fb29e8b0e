"""What is attached to a manifest that is to go, put as objects of their own, unopened."""

from __future__ import annotations

from collections.abc import Collection

from smsnapd.errors import DamageError, ObjectExistsError, ObjectMissingError
from smsnapd.format import names
from smsnapd.format.manifest_object import decode_manifest
from smsnapd.format.names import ManifestName
from smsnapd.format.table import attached_object
from smsnapd.repository import Repository


def put_attached(repository: Repository, host: ManifestName, wanted: Collection[str]) -> bool:
    """Put as objects what of the attachments of `host` has one of the names `wanted`.

    Whether all of them are objects now: an object of another run may have the name, with other bytes than
    the manifests tell of; then the host must stay. DamageError if it is not whole. May be repeated.
    """
    store, own = repository.store, host.object_name()
    try:
        data = store.get(own)
    except ObjectMissingError:
        return False
    manifest = decode_manifest(data, host, repository.id, repository.catalog_key_of, repository.verify_key_of)
    found = {
        name_of(host.volume, ref.name_hash, ref.key_id): ref
        for refs, name_of in ((manifest.chunks, names.chunk_name), (manifest.catalog, names.catalog_name))
        for ref in refs
        if ref.manifest == own
    }
    if missing := set(wanted) - found.keys():
        raise DamageError(f"read {own}", f"{min(missing)} is not attached to it, as another manifest says")
    try:
        for name in sorted(wanted):
            store.put(name, attached_object(data, found[name]))
    except ObjectExistsError:
        return False
    store.barrier()
    return True
