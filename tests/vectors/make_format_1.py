"""Writes format-1.json: fixed secrets, what comes of them, and objects that every later version must read.

Run from the root of the checkout: `PYTHONPATH=. python tests/vectors/make_format_1.py`. The parts
under "sealed" differ from run to run (HPKE draws random numbers, zstd compresses as its version does).
"""

from __future__ import annotations

import json
from pathlib import Path

from blake3 import blake3

from smsnapd.format import names
from smsnapd.format.codec import Context, ObjectType, chunk_hash, padme, seal, stored_hash
from smsnapd.format.keys import DataKey, Identity, WriteKey, seal_data_key, seal_write_key
from smsnapd.format.keyslot import Argon2Cost, make_keyslot
from smsnapd.format.manifest import (
    Completeness,
    Issue,
    Manifest,
    Owner,
    Owners,
    ParentRef,
    Source,
    Statistics,
)
from smsnapd.format.manifest_object import encode_manifest
from smsnapd.format.names import ManifestName
from smsnapd.format.record import Lease, RepositoryRecord, public_id, record_hash
from smsnapd.format.roster import Head, Revocation, Roster, RosterKey
from smsnapd.model import ChunkRef

TARGET = Path(__file__).with_name("format-1.json")
VOLUME = "home"
TIME_US = 1_767_323_045_000_006  # 2026-01-02T03:04:05.000006Z
PASSPHRASE = "Gru\u0308ße, 3 vectors"  # not NFC: readers normalise


def fixed(label: str, size: int = 32) -> bytes:
    """Bytes that look random, the same in every run."""
    return blake3(f"format-1 {label}".encode()).digest(size)


REPOSITORY_ID = fixed("repository", 16)
IDENTITY = Identity(fixed("identity"))
WRITE_KEY = WriteKey(REPOSITORY_ID, fixed("write key"))
DATA_KEY = DataKey(fixed("data key id", 16), fixed("data key"))
CONTENT = fixed("content", 1024)
MANIFEST_NAME = ManifestName(VOLUME, 2, 1, TIME_US, "incremental", "0123456789abcdef")


def keys() -> dict[str, object]:
    volume = WRITE_KEY.volume(VOLUME)
    return {
        "repository_id": REPOSITORY_ID.hex(),
        "volume": VOLUME,
        "identity": {
            "secret": IDENTITY.secret.hex(),
            "recovery_key": IDENTITY.recovery_key(),
            "root_public": IDENTITY.root_public.hex(),
            "recipient_public": IDENTITY.recipient.public.hex(),
            "recipient_id": IDENTITY.recipient.id.hex(),
        },
        "write_key": {
            "secret": WRITE_KEY.secret.hex(),
            "file": WRITE_KEY.to_text(IDENTITY.root_public),
            "catalog_key": WRITE_KEY.catalog_key.hex(),
            "verify_key": WRITE_KEY.verify_key.hex(),
            "writer_id": WRITE_KEY.writer_id.hex(),
            "chunk_names": volume.chunk_names.hex(),
            "catalog_names": volume.catalog_names.hex(),
            "boundaries": volume.boundaries.hex(),
        },
        "data_key": {"id": DATA_KEY.id.hex(), "secret": DATA_KEY.secret.hex()},
    }


def first_roster() -> Roster:
    recipient = IDENTITY.recipient
    return Roster(
        repository_id=REPOSITORY_ID,
        sequence=1,
        previous=None,
        recipients=(RosterKey(recipient.id, recipient.public, "the owner"),),
        writers=(RosterKey(WRITE_KEY.writer_id, WRITE_KEY.verify_key, "notebook-1"),),
    )


def second_roster() -> Roster:
    first, former = first_roster(), fixed("former writer")
    return Roster(
        repository_id=REPOSITORY_ID,
        sequence=2,
        previous=record_hash(first.encode(IDENTITY.root_private)),
        recipients=first.recipients,
        writers=(*first.writers, RosterKey(public_id(former), former, "äußerst “gone”")),
        revoked=(Revocation(public_id(former), (Head(VOLUME, fixed("head")),)),),
    )


def records() -> dict[str, str]:
    root = IDENTITY.root_private
    slot = make_keyslot(
        IDENTITY,
        PASSPHRASE,
        REPOSITORY_ID,
        "passphrase",
        Argon2Cost(memory_kib=256, iterations=2, lanes=2),
        lambda size: fixed(f"keyslot {size}", size),
    )
    return {
        names.REPOSITORY: RepositoryRecord(REPOSITORY_ID, IDENTITY.root_public, TIME_US)
        .encode(root)
        .decode(),
        names.keyslot_name(slot.slot): slot.encode().decode(),
        names.roster_name(1): first_roster().encode(root).decode(),
        names.roster_name(2): second_roster().encode(root).decode(),
        names.lease_name(VOLUME): Lease(REPOSITORY_ID, VOLUME, 3, "notebook-1", TIME_US).encode().decode(),
    }


def chunk() -> tuple[str, bytes]:
    """Name and sealed bytes. zstd keeps this content as it is, so they are the same with every version."""
    name = names.chunk_name(VOLUME, chunk_hash(WRITE_KEY.volume(VOLUME).chunk_names, CONTENT), DATA_KEY.id)
    context = Context(REPOSITORY_ID, VOLUME, name)
    return name, seal(
        ObjectType.CHUNK, DATA_KEY.secret, DATA_KEY.id, context, CONTENT, salt=fixed("chunk salt")
    )


def manifest() -> Manifest:
    """One chunk attached here, one attached to an earlier manifest, one catalog segment of its own."""
    _, sealed = chunk()
    own = MANIFEST_NAME.object_name()
    earlier = MANIFEST_NAME._replace(sequence=1, kind="full", snapshot="00" * 8).object_name()
    name_hash = chunk_hash(WRITE_KEY.volume(VOLUME).chunk_names, CONTENT)
    return Manifest(
        repository_id=REPOSITORY_ID,
        name=MANIFEST_NAME,
        finished_us=TIME_US + 1_500_000,
        parent=ParentRef("00" * 8, fixed("parent")),
        program="smsnapd 0.1.0",
        host="notebook-1",
        source=Source("/home/ec2-user/SageMaker", "f2cf9d4e-0000-4000-8000-000000000000"),
        consistency="live",
        completeness=Completeness(
            method="scan",
            complete=False,
            incomplete=(Issue("caf\u00e9.txt".encode("latin-1"), "changed while read"),),
            vanished=(b"a/b c",),
            skipped=(Issue("run/é.sock".encode(), "socket"),),
        ),
        statistics=Statistics(7, 4, 123_456, 8192, 2, 1),
        owners=Owners((Owner(0, "root"), Owner(1000, "ec2-user")), (Owner(1000, "größe"),)),
        chunks=(
            ChunkRef(name_hash, DATA_KEY.id, len(CONTENT), len(sealed), stored_hash(sealed), own, 0),
            ChunkRef(fixed("c2"), fixed("k2", 16), 8 << 20, 5 << 20, fixed("s2"), earlier, 4096),
        ),
        catalog=(ChunkRef(fixed("c3"), WRITE_KEY.writer_id, 300, 4096, fixed("s3")),),
    )


def sealed() -> dict[str, str]:
    recipients = [IDENTITY.recipient, Identity(fixed("other identity")).recipient]
    root = IDENTITY.root_private
    return {
        names.writer_name(WRITE_KEY.writer_id): seal_write_key(WRITE_KEY, recipients, root).hex(),
        names.data_key_name(VOLUME, DATA_KEY.id, 2): seal_data_key(
            DATA_KEY, VOLUME, recipients, WRITE_KEY, 2
        ).hex(),
        MANIFEST_NAME.object_name(): encode_manifest(manifest(), WRITE_KEY, chunk()[1]).hex(),
    }


def fixed_parts() -> dict[str, object]:
    name, chunk_bytes = chunk()
    return {
        **keys(),
        "passphrase": PASSPHRASE,
        "records": records(),
        "chunk": {"name": name, "content": CONTENT.hex(), "object": chunk_bytes.hex()},
        "padme": {str(size): padme(size) for size in (4096, 4097, 9000, 65_537, 1_000_001, 33_554_433)},
    }


if __name__ == "__main__":
    vectors = fixed_parts() | {"sealed": sealed()}
    TARGET.write_text(json.dumps(vectors, indent=1, sort_keys=True) + "\n", "utf-8")
