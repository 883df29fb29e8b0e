"""Recover a snapshot, by FORMAT.md, cryptography>=50, zstandard and blake3 alone: prints a tar archive.

The recovery key is $SMSNAP_RECOVERY_KEY; without one, the passphrase is $SMSNAP_PASSPHRASE, or asked for.
From S3, first: aws s3 sync s3://BUCKET/PREFIX DIRECTORY. If the exit status is 0, extract as root:
tar -xpf out.tar --numeric-owner --acls --xattrs --xattrs-include='*'"""

import argparse
import glob
import io
import json
import os
import struct
import sys
from base64 import b32decode, b64decode
from contextlib import suppress
from getpass import getpass
from itertools import accumulate, islice
from typing import Any
from unicodedata import normalize

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, hpke
from cryptography.hazmat.primitives.asymmetric import ed25519, mlkem, x25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf import argon2, hkdf
from zstandard import ZstdDecompressor, frame_content_size


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
    suite = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)

    def __init__(self) -> None:
        secret, self.held = self.secret(), dict[str, bytes]()
        kem = mlkem.MLKEM768PrivateKey.from_seed_bytes(derive(secret, "identity ml-kem-768", size=64))
        ecdh = x25519.X25519PrivateKey.from_private_bytes(derive(secret, "identity x25519"))
        public = kem.public_key().public_bytes_raw() + ecdh.public_key().public_bytes_raw()
        self.identity, self.recipient = hpke.MLKEM768X25519PrivateKey(kem, ecdh), blake3(public).hexdigest(16)
        self.root = ed25519.Ed25519PrivateKey.from_private_bytes(derive(secret, "identity root")).public_key()
        self.id = bytes.fromhex(self.record("repository")["repository"])
        load, roster = ed25519.Ed25519PublicKey.from_public_bytes, max(glob.glob("keys/roster/[0-9]*"))
        self.writers = {w["id"]: load(bytes.fromhex(w["public"])) for w in self.record(roster)["writers"]}

    def secret(self) -> bytes:
        """Sections 3 and 4: the identity secret, of the recovery key or of a keyslot."""
        if key := "".join(filter(str.isalnum, os.environ.get("SMSNAP_RECOVERY_KEY", ""))).upper():
            secret = b32decode(key.removeprefix("SMSNAPIDENTITY1") + "======")
            check(secret[32:] == blake3(secret[:32]).digest(4), "it is mistyped")
            return secret[:32]
        typed = normalize("NFC", os.environ.get("SMSNAP_PASSPHRASE") or getpass("Passphrase: ")).encode()
        for slot in [s for s in map(self.record, glob.glob(f"keys/slots/{'[0-9a-f]' * 16}")) if "salt" in s]:
            salt, nonce, sealed = map(bytes.fromhex, (slot["salt"], slot["nonce"], slot.pop("sealed")))
            cost = {"iterations": slot["iterations"], "lanes": slot["lanes"]}
            kdf = argon2.Argon2id(salt=salt, length=32, memory_cost=min(slot["memory_kib"], 2 << 20), **cost)
            with suppress(InvalidTag):
                bound = json.dumps(slot, separators=(",", ":")).encode()
                return AESGCM(kdf.derive(typed)).decrypt(nonce, sealed, bound)
        raise ValueError("the passphrase is wrong")

    def read(self, name: str, host: str = "", offset: int = 0, size: int = 0) -> bytes:
        """Section 7: an object, perhaps attached to a manifest, its host, unless that is gone."""
        Repository.reading = host if os.path.exists(host) else name
        with open(Repository.reading, "rb") as file:
            if Repository.reading == host:
                file.seek(64 + int.from_bytes(file.read(64)[56:], "little") + offset)
            return file.read(size if Repository.reading == host else -1)

    def record(self, name: str) -> Any:
        """Section 3: the members of a record, its checksum, name and signature verified."""
        data = self.read(name)
        first, text, *signature, digest, _ = data.decode("ascii").split("\n")
        members, right = json.loads(text), "blake3 " + blake3(data[:-72]).hexdigest()
        check((digest, members["object"], first[-2:]) == (right, name, " 1"), "it is damaged or misplaced")
        if not name.startswith("keys/slots/"):
            signer = self.writers[members["writer"]] if name.startswith("volumes/") else self.root
            signer.verify(bytes.fromhex(signature[0][8:]), f"smsnapd v1 record\0{first}\n{text}\n".encode())
        return members

    def key(self, use: str, name: str, volume: str = "") -> bytes:
        """Section 4: the key in a record, sealed to the identity."""
        info = f"smsnapd v1 {use} key\0".encode() + self.id + bytes.fromhex(name[-32:]) + volume.encode()
        sealed = dict(p for f in glob.glob(name + "*") or [name] for p in self.record(f)["sealed"].items())
        return self.suite.decrypt(bytes.fromhex(sealed[self.recipient]), self.identity, info)

    def open(self, name: str, data: bytes) -> bytes:
        """Sections 4 to 8: the content of a sealed object."""
        (_, volume, kind, *_), owner = name.split("/"), data[8:24].hex()
        box = f"volumes/{volume}/keys/{owner}"
        writer = self.record(min(glob.glob(box + "*"), default=box))["writer"] if kind == "chunks" else owner
        write_key = self.key("write", f"keys/writers/{writer}")
        key = self.key("data", box, volume) if kind == "chunks" else derive(write_key, "catalog", self.id)
        Repository.reading = name
        bound = self.id + b"".join(struct.pack("<H", len(text)) + text.encode() for text in (volume, name))
        plain = AESGCM(derive(key, "object", data[24:56])).decrypt(bytes(12), data[64:], data[:64] + bound)
        frame = plain[8 : 8 + int.from_bytes(plain[:8], "little")]
        check(data[:5] == b"SMSN\1" and frame_content_size(frame) <= 64 << 20, "it is too new or large")
        content = ZstdDecompressor().decompress(frame, allow_extra_data=False)
        digest = blake3(content, key=derive(write_key, f"{kind[:-1]} names\0{volume}", self.id)).hexdigest()
        check(kind == "manifests" or digest in name, "its content is not what its name says")
        return content

    def manifest(self, name: str) -> Any:
        """Section 7: the members of a manifest, its tables decoded; and its name, hash and writer."""
        data = self.read(name)
        content = self.open(name, data[: 64 + int.from_bytes(data[56:64], "little")])
        signed = b"smsnapd v1 manifest\0" + struct.pack("<H", len(name)) + name.encode() + content[64:]
        self.writers[data[8:24].hex()].verify(content[:64], signed)
        m = json.loads(content[64:])
        understood = m["mode"] == "tar" and {*m["must_understand"]} <= {"stands-for"}
        check(m["format"] == 1 and understood, "it needs a newer reader")
        m |= {t: [*struct.iter_unpack("<32sHHII32sQ", b64decode(m[t]))] for t in ("chunks", "catalog")}
        hashes = {blake3(data).hexdigest(), *(row["hash"] for row in m.get("stands_for", []))}
        return m | {"name": name, "hashes": hashes, "writer": data[8:24].hex()}

    def fetch(self, m: Any, row: Any, chunk: bool) -> bytes:
        """Sections 6 to 8: the content of a chunk or a catalog segment, by its row in a manifest's table."""
        digest, key, place, _, size, stored, offset = row
        folder, owner = (f"chunks/{digest.hex()[:2]}", m["keys"][key]) if chunk else ("catalogs", m["writer"])
        name = f"volumes/{m['volume']}/{folder}/{digest.hex()}-{owner}"
        if name not in self.held:
            data = self.read(name, ["", m["name"], *m["attached_to"]][place], offset, size)
            check(blake3(data).digest() == stored, "it is damaged")
            self.held = dict([*self.held.items()][-3:]) | {name: self.open(name, data)}
        return self.held[name]

    def column(self, count: int, text: bool = False) -> list[Any]:
        """Section 8: the next column of a catalog segment, of integers or of byte strings."""
        encoding, width, base = struct.unpack("<BBq", self.columns.read(10))
        planes = [self.columns.read(count) for _ in range(width)] + [bytes(count)]
        values = [base + int.from_bytes(digits, "little") for digits in zip(*planes, strict=True)]
        values = [(v + 2**63) % 2**64 - 2**63 for v in (accumulate(values) if encoding == 1 else values)]
        return [self.columns.read(size) for size in values] if text else values

    def entries(self, m: Any, row: Any) -> Any:
        """Section 8: the entries of a catalog segment: path, if it is a directory, extents, if it cuts."""
        self.columns, column, last, end = io.BytesIO(self.fetch(m, row, chunk=False)), self.column, 0, 0
        d, n, x = struct.unpack("<8x3I", self.columns.read(20))
        where, counts, kinds, marks, names = column(d, True), column(d), column(n), column(n), column(n, True)
        _ = [column(n) for _ in range(8)], column(n, True), column(x, True), column(n)  # headers have these
        _, _, lengths = map(column, [sum(column(n))] * 2 + [n])
        rows = zip(*[column(sum(lengths)) for _ in range(3)], strict=True)
        where = [folder for folder, count in zip(where, counts, strict=True) for _ in range(count)]
        for folder, name, kind, mark, length in zip(where, names, kinds, marks, lengths, strict=True):
            path = (b"", *folder.split(b"/"), name) if folder else (b"", name) if name else (b"",)
            wrong, extents = {b"", b".", b".."} & {*path[1:]} or b"\0" in folder + name or b"/" in name, []
            check(not wrong, f"{path} is no path")
            for chunk, gap, blocks in islice(rows, length):
                end, last = gap + (end if chunk == last else 0) + blocks, chunk
                extents.append((m, m["chunks"][chunk], 512 * (end - blocks), 512 * end))
            yield path, (kind == 2, extents, kind != 2 or mark & 16)

    def write_tar(self, names: list[str]) -> None:
        """Sections 7 to 9: fold the catalogs of a chain, and write the archive to standard output."""
        tree, parents = dict[tuple[bytes, ...], Any](), set[str]()
        for m in map(self.manifest, names):
            check(m["parent"]["hash"] in parents if parents else m["kind"] == "full", "its parent is missing")
            parents, rows = m["hashes"], m["catalog"]
            layer = dict(entry for row in rows for entry in self.entries(m, row))
            cut = {path for path in layer if layer[path][2] and path in tree and tree[path][0]}
            tree = {p: e for p, e in tree.items() if cut.isdisjoint(p[:i] for i in range(len(p)))} | layer
        for path in sorted(tree, key=lambda path: (path, b"") if tree[path][0] else (path[:-1], path[-1])):
            sys.stdout.buffer.writelines(self.fetch(m, row, True)[a:b] for m, row, a, b in tree[path][1])
        print(end="\0" * 1024, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("directory", help="the repository")
    parser.add_argument("--volume", default="*", help="needed if there are several")
    parser.add_argument("--snapshot", default="latest", metavar="ID|latest")
    parser.add_argument("--list", action="store_true", help="print the recovery points instead")
    arguments = parser.parse_args()
    try:
        os.chdir(arguments.directory)
        repository, Repository.reading = Repository(), arguments.directory
        found = sorted(glob.glob(f"volumes/{arguments.volume}/manifests/{'[0-9]' * 10}-*-*-*-*[0-9a-f]"))
        parts = {name: os.path.basename(name).split("-") for name in found}
        spans = {name: (int((*part, part[0])[5]), int(part[0])) for name, part in parts.items()}  # section 15
        stood = {number for first, last in spans.values() for number in range(first, last)}
        highest = {spans[name][1]: name for name in found if spans[name][1] not in stood}  # generations
        for m in map(repository.manifest, highest.values() if arguments.list else ()):
            print(m["snapshot"], m["time"], m["kind"], "" if m["completeness"]["complete"] else "INCOMPLETE")
        if not arguments.list:
            chain = [name for name in found if arguments.snapshot in ("latest", parts[name][4])][-1:]
            check(chain and len({*map(os.path.dirname, found)}) == 1, f"not one {arguments.snapshot}")
            while parts[chain[0]][3] != "full":
                parent, first = repository.manifest(chain[0])["parent"]["snapshot"], spans[chain[0]][0]
                over = [name for name in found if spans[name][0] < first <= spans[name][1] + 1]
                over.sort(key=lambda name: parts[name][4] == parent)
                chain.insert(0, over[-1] if over else "its parent, which is missing")
            repository.write_tar(chain)
    except Exception as error:
        sys.exit(f"recover.py: {Repository.reading}: {str(error) or type(error).__name__ + ' (other key?)'}")
