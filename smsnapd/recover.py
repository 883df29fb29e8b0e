"""Recover a snapshot without smsnapd, as a tar archive. Written from FORMAT.md; sections named here are its.

Needs Python 3.11 and `pip install 'cryptography>=50' zstandard blake3`. Uses nothing unverified. Opens only the
manifests of the snapshot's chain, so that damage elsewhere does not stop it; --list opens and verifies all.
"""

import argparse
import base64
import getpass
import heapq
import json
import os
import re
import struct
import sys
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate, islice
from typing import Any, NamedTuple

import zstandard
from blake3 import blake3
from cryptography.hazmat.primitives import hashes, hpke
from cryptography.hazmat.primitives.asymmetric import ed25519, mlkem, x25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf import argon2, hkdf

HELP = """Copy a bucket first: aws s3 sync s3://BUCKET/PREFIX DIRECTORY. The recovery key is $SMSNAP_RECOVERY_KEY;
without it the passphrase is $SMSNAP_PASSPHRASE, or asked for. Extract as root: tar -xpf out.tar --numeric-owner
--acls --xattrs --xattrs-include='*' --delay-directory-restore -C EMPTY_DIRECTORY"""
SUITE = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
CHUNK, CATALOG, MANIFEST = 1, 2, 3
LIMITS = {CHUNK: 32 << 20, CATALOG: 64 << 20, MANIFEST: 64 << 20}
MANIFEST_NAME = "[0-9]{10}-[0-9]{10}-[0-9]{8}T[0-9]{12}Z-(full|incremental)-[0-9a-f]{16}"
ROW = struct.Struct("<32sHHII32sQ")


class Entry(NamedTuple):
    """Sorts in catalog order, of one path the newest first. `/` is NUL here, so that paths sort as they must."""

    directory: bytes
    name: bytes
    age: int
    path: bytes
    kind: int
    alias_of: bytes | None
    extents: list[tuple[int, int, int]]


def check(holds: object, why: str) -> None:
    """Stop, and say why, unless something holds."""
    if not holds:
        raise ValueError(why)


def unhex(text: str) -> bytes:
    """Section 1: hex is lower-case."""
    check(bytes.fromhex(text).hex() == text, "hex is not lower-case")
    return bytes.fromhex(text)


def canonical(members: dict[str, Any]) -> str:
    """Section 1: canonical JSON."""
    return json.dumps(members, sort_keys=True, separators=(",", ":"))


def derive(secret: bytes, salt: bytes, info: str, size: int = 32) -> bytes:
    """Section 1: HKDF."""
    return hkdf.HKDF(hashes.SHA256(), size, salt, info.encode()).derive(secret)


class Repository:
    """Sections 2 to 5: the objects, and the keys that open them."""

    def __init__(self, directory: str) -> None:
        """Trust the root that the identity gives, and whom the rosters name that it signed."""
        self.directory, self.id, self.reading, self.keys = directory, b"", directory, {}
        record = self.record("repository", "repository")
        self.id, secret = unhex(record["repository"]), self.secret(record["repository"])
        seed = derive(secret, b"", "smsnapd v1 identity ml-kem-768", 64)
        kem = mlkem.MLKEM768PrivateKey.from_seed_bytes(seed)
        dh = x25519.X25519PrivateKey.from_private_bytes(derive(secret, b"", "smsnapd v1 identity x25519"))
        public = kem.public_key().public_bytes_raw() + dh.public_key().public_bytes_raw()
        self.private, self.recipient = hpke.MLKEM768X25519PrivateKey(kem, dh), blake3(public).hexdigest()[:32]
        self.root = signing_key(derive(secret, b"", "smsnapd v1 identity root"))
        check(record["root"] == self.root, "the key at hand is of another repository")
        self.roster = {}
