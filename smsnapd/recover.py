"""Recover a snapshot from a repository, by FORMAT.md alone: a tar archive, whole if the exit status is 0.

The recovery key is $SMSNAP_RECOVERY_KEY; without one, the passphrase is $SMSNAP_PASSPHRASE, or asked for.
From S3, first: aws s3 sync s3://BUCKET/PREFIX DIRECTORY. Extract as root, in an empty directory:
tar -xpf out.tar --numeric-owner --acls --xattrs --xattrs-include='*'
"""

import argparse
import base64
import getpass
import glob
import io
import json
import os
import struct
import sys
import unicodedata
from contextlib import suppress
from itertools import accumulate, islice
from typing import Any

import zstandard
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, hpke
from cryptography.hazmat.primitives.asymmetric import ed25519, mlkem, x25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf import argon2, hkdf

SUITE = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)


def check(holds: object, why: str) -> None:
    """Stop, and say why, unless something holds."""
    if not holds:
        raise ValueError(why)


def derive(secret: bytes, use: str, salt: bytes = b"", size: int = 32) -> bytes:
    """Sections 1 and 4: HKDF."""
    return hkdf.HKDF(hashes.SHA256(), size, salt, f"smsnapd v1 {use}".encode()).derive(secret)


class Repository:
    """The repository in the working directory; `reading` is the object that an error is about."""

    reading = "the recovery key"

    def __init__(self) -> None:
        secret, self.held = self.secret(), dict[str, bytes]()
        kem = mlkem.MLKEM768PrivateKey.from_seed_bytes(derive(secret, "identity ml-kem-768", size=64))
        ecdh = x25519.X25519PrivateKey.from_private_bytes(derive(secret, "identity x25519"))
        public = kem.public_key().public_bytes_raw() + ecdh.public_key().public_bytes_raw()
        self.identity, self.recipient = hpke.MLKEM768X25519PrivateKey(kem, ecdh), blake3(public).hexdigest(16)
        self.root = ed25519.Ed25519PrivateKey.from_private_bytes(derive(secret, "identity root")).public_key()
        self.id = bytes.fromhex(self.record("repository")["repository"])
        load, roster = ed25519.Ed25519PublicKey.from_public_bytes, max(glob.glob("keys/roster/" + "[0-9]" * 10))
        self.writers = {w["id"]: load(bytes.fromhex(w["public"])) for w in self.record(roster)["writers"]}

    def secret(self) -> bytes:
        """Sections 3 and 4: the identity secret, of the recovery key or of a keyslot."""
        if key := "".join(filter(str.isalnum, os.environ.get("SMSNAP_RECOVERY_KEY", ""))).upper():
            secret = base64.b32decode(key.removeprefix("SMSNAPIDENTITY1") + "======")
            check(secret[32:] == blake3(secret[:32]).digest(4), "it is mistyped")
            return secret[:32]
        typed = os.environ.get("SMSNAP_PASSPHRASE") or getpass.getpass("Passphrase: ")
        for slot in map(self.record, glob.glob("keys/slots/" + "[0-9a-f]" * 16)):
            salt, nonce, sealed = map(bytes.fromhex, (slot["salt"], slot["nonce"], slot.pop("sealed")))
            cost = {"iterations": slot["iterations"], "lanes": slot["lanes"]}
            kdf = argon2.Argon2id(salt=salt, length=32, memory_cost=min(slot["memory_kib"], 2 << 20), **cost)
            cipher = AESGCM(kdf.derive(unicodedata.normalize("NFC", typed).encode()))
            with suppress(InvalidTag):
                return cipher.decrypt(nonce, sealed, json.dumps(slot, separators=(",", ":")).encode())
        raise ValueError("the passphrase is wrong")

    def read(self, name: str, host: str = "", offset: int = 0, size: int = -1) -> bytes:
        """Section 7: an object, perhaps attached to a manifest, its host, unless that is gone."""
        Repository.reading = host if os.path.exists(host) else name
        with open(Repository.reading, "rb") as file:
            if Repository.reading == host:
                file.seek(64 + int.from_bytes(file.read(64)[56:], "little") + offset)
            return file.read(size)

    def record(self, name: str) -> Any:
        """Section 3: the members of a record, its checksum, name and signature verified."""
        data = self.read(name)
        first, text, *signature, digest, _ = data.decode("ascii").split("\n")
        check(digest == "blake3 " + blake3(data[:-72]).hexdigest(), "it is damaged")
        members = json.loads(text)
        check((members["object"], first[-2:]) == (name, " 1"), "it is of another name or version")
        if not name.startswith("keys/slots/"):
            signer = self.writers[members["writer"]] if name.startswith("volumes/") else self.root
            signer.verify(bytes.fromhex(signature[0][8:]), f"smsnapd v1 record\0{first}\n{text}\n".encode())
        return members

    def key(self, name: str, info: bytes) -> bytes:
        """Section 4: the key in a record, sealed to the identity."""
        sealed = bytes.fromhex(self.record(name)["sealed"][self.recipient])
        return SUITE.decrypt(sealed, self.identity, info + self.id)

    def open(self, name: str, data: bytes) -> bytes:
        """Sections 4 to 8: the content of a sealed object."""
        _, volume, kind, *_ = name.split("/")
        owner, record = data[8:24], f"volumes/{volume}/keys/{data[8:24].hex()}"
        writer = self.record(record)["writer"] if kind == "chunks" else owner.hex()
        write_key = self.key(f"keys/writers/{writer}", b"smsnapd v1 write key\0", bytes.fromhex(writer))
        key = derive(write_key, "catalog", self.id)
        if kind == "chunks":
            key = self.key(record, b"smsnapd v1 data key\0", owner + volume.encode())
        Repository.reading = name
        bound = b"".join(struct.pack("<H", len(text)) + text.encode() for text in (volume, name))
        cipher = AESGCM(derive(key, "object", data[24:56]))
        plain = cipher.decrypt(bytes(12), data[64:], data[:64] + self.id + bound)
        frame = plain[8 : 8 + int.from_bytes(plain[:8], "little")]
        check(data[:5] == b"SMSN\1" and zstandard.frame_content_size(frame) <= 64 << 20, "it is too new or large")
        content = zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)
        digest = blake3(content, key=derive(write_key, f"{kind[:-1]} names\0{volume}", self.id)).hexdigest()
        check(kind == "manifests" or digest in name, "its content is not what its name says")
        return content
