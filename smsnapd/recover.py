"""Recover a snapshot from a local copy of a repository, without smsnapd: a tar archive on standard output.

Written from FORMAT.md, whose sections are named below. Needs Python 3.11, cryptography>=50, zstandard and blake3.
From S3, first: aws s3 sync s3://BUCKET/PREFIX DIRECTORY. The recovery key is $SMSNAP_RECOVERY_KEY; without one, the
passphrase is $SMSNAP_PASSPHRASE, or asked for. Extract as root, in an empty directory: tar -xpf out.tar
--numeric-owner --acls --xattrs --xattrs-include='*' --delay-directory-restore. Only status 0 is a whole archive.
"""

import argparse
import base64
import getpass
import io
import json
import os
import re
import struct
import sys
import unicodedata
from collections.abc import Iterator
from itertools import accumulate, islice, pairwise
from typing import Any

import zstandard
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, hpke
from cryptography.hazmat.primitives.asymmetric import ed25519, mlkem, x25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf import argon2, hkdf

CHUNK, CATALOG, MANIFEST = 1, 2, 3
LIMITS = {CHUNK: 32 << 20, CATALOG: 64 << 20, MANIFEST: 64 << 20}
TOMBSTONE, DIRECTORY = 0, 2
MANIFEST_NAME = "[0-9]{10}-[0-9]{10}-[0-9]{8}T[0-9]{12}Z-(full|incremental)-[0-9a-f]{16}"
ROW = struct.Struct("<32sHHII32sQ")
SUITE = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode
Members = dict[Any, Any]
# Kind, what an alias is of (else None), and extents: whose table, row, offset and length in bytes.
Entry = tuple[int, bytes | None, list[tuple[Members, int, int, int]]]


def check(holds: object, why: str) -> None:
    """Stop, and say why, unless something holds."""
    if not holds:
        raise ValueError(why)


def parse(text: str) -> Members:
    """Section 1: canonical JSON."""
    members: Members = json.loads(text)
    check(CANONICAL(members) == text, "its JSON is not canonical")
    return members


def derive(secret: bytes, salt: bytes, info: str, size: int = 32) -> bytes:
    """Section 1: HKDF."""
    return hkdf.HKDF(hashes.SHA256(), size, salt, info.encode()).derive(secret)


def verify(public: str, signature: bytes, signed: bytes) -> None:
    """Section 1: an Ed25519 signature."""
    ed25519.Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(signature, signed)


class Repository:
    """Sections 2 to 7: the objects of a repository, and the keys that open them."""

    reading = "the command line"

    def __init__(self, directory: str) -> None:
        """Trust the root that the identity gives, and the writers that its rosters name."""
        self.directory, self.id, self.root = directory, b"", ""
        self.keys: dict[str, tuple[bytes, str]] = {}
        self.held: dict[str, bytes] = {}
        record = self.record("repository", "repository")
        self.id = bytes.fromhex(record["repository"])
        secret = self.identity_secret()
        seed = derive(secret, b"", "smsnapd v1 identity ml-kem-768", 64)
        kem = mlkem.MLKEM768PrivateKey.from_seed_bytes(seed)
        ecdh = x25519.X25519PrivateKey.from_private_bytes(derive(secret, b"", "smsnapd v1 identity x25519"))
        self.identity = hpke.MLKEM768X25519PrivateKey(kem, ecdh)
        public = kem.public_key().public_bytes_raw() + ecdh.public_key().public_bytes_raw()
        self.recipient = blake3(public).hexdigest()[:32]
        root = ed25519.Ed25519PrivateKey.from_private_bytes(derive(secret, b"", "smsnapd v1 identity root"))
        self.root = root.public_key().public_bytes_raw().hex()
        check(record["root"] == self.root, "the key at hand is of another repository")
        roster = self.roster()
        self.writers = {writer["id"]: writer["public"] for writer in roster["writers"]}
        self.revoked = {revoked["id"]: revoked["heads"] for revoked in roster["revoked"]}

    def identity_secret(self) -> bytes:
        """Sections 3 and 4: from the recovery key, or from a keyslot that the passphrase opens."""
        if key := re.sub(r"[-\s]", "", os.environ.get("SMSNAP_RECOVERY_KEY", "")).upper():
            Repository.reading = "the recovery key"
            secret = base64.b32decode(key.removeprefix("SMSNAPIDENTITY1") + "======")
            check(secret[32:] == blake3(secret[:32]).digest(4), "it is mistyped")
            return secret[:32]
        typed = os.environ.get("SMSNAP_PASSPHRASE") or getpass.getpass("Passphrase: ")
        for name in self.names("keys/slots/", "[0-9a-f]{16}"):
            try:
                return self.keyslot(name, unicodedata.normalize("NFC", typed).encode())
            except InvalidTag:
                continue
        raise ValueError("the passphrase is wrong")

    def keyslot(self, name: str, passphrase: bytes) -> bytes:
        """Section 3: the identity secret in a keyslot; InvalidTag if its passphrase is another."""
        slot = self.record(name, "keyslot")
        sealed, memory, lanes = bytes.fromhex(slot.pop("sealed")), slot["memory_kib"], slot["lanes"]
        fair = 8 * lanes <= memory <= 2 << 20 and lanes <= 64 and slot["iterations"] <= 64
        check(slot["kdf"] == "argon2id" and fair, "it asks for another key derivation, or for too much")
        cost = {"iterations": slot["iterations"], "lanes": lanes, "memory_cost": memory}
        key = argon2.Argon2id(salt=bytes.fromhex(slot["salt"]), length=32, **cost).derive(passphrase)
        return AESGCM(key).decrypt(bytes.fromhex(slot["nonce"]), sealed, CANONICAL(slot).encode())

    def roster(self) -> Members:
        """Section 3: the newest roster, at the end of an unbroken row."""
        roster, previous = Members(), None
        for number, name in enumerate(self.names("keys/roster/", "[0-9]{10}"), 1):
            roster = self.record(name, "roster")
            check((roster["sequence"], roster["previous"]) == (number, previous), "the one before is missing")
            previous = blake3(self.read(name)).hexdigest()
        for key in roster["recipients"] + roster["writers"]:
            check(key["id"] == blake3(bytes.fromhex(key["public"])).hexdigest()[:32], "an id is not its key's")
        return roster

    def names(self, folder: str, pattern: str) -> list[str]:
        """The objects in a folder whose names match, sorted."""
        Repository.reading = folder
        found = os.listdir(os.path.join(self.directory, folder))
        return sorted(folder + name for name in found if re.fullmatch(pattern, name))

    def read(self, name: str, host: str = "", offset: int = 0, size: int = -1) -> bytes:
        """An object's bytes; section 7: those of one attached to a manifest (`host`), while there is that."""
        path = os.path.join(self.directory, host)
        attached = host and os.path.exists(path)
        Repository.reading = host if attached else name
        with open(path if attached else os.path.join(self.directory, name), "rb") as file:
            if attached:
                file.seek(64 + offset + int.from_bytes(file.read(64)[56:], "little"))
            return file.read(size if attached else -1)

    def record(self, name: str, kind: str) -> Members:
        """Section 3: the members of a record, verified."""
        data = self.read(name)
        first, text, *signature, digest, end = data.decode("ascii").split("\n")
        check(first == f"smsnapd {kind} 1" and not end, f"it is no {kind} of version 1")
        check(digest == f"blake3 {blake3(data[: -len(digest) - 1]).hexdigest()}", "it is damaged")
        members = parse(text)
        check(members["object"] == name and self.id.hex() in ("", members["repository"]), "it is another's")
        if kind != "keyslot":
            signer = self.writers[members["writer"]] if kind == "datakey" else self.root or members["root"]
            signed = f"smsnapd v1 record\0{first}\n{text}\n".encode()
            verify(signer, bytes.fromhex(signature[0].removeprefix("ed25519 ")), signed)
        return members

    def unseal(self, kind: str, name: str, info: bytes) -> tuple[bytes, str]:
        """Sections 2 to 4: a key that is sealed to the identity, and its writer."""
        folder, stem = os.path.split(name)
        for found in [] if name in self.keys else self.names(folder + "/", stem + "(-[0-9]{10})?"):
            record = self.record(found, kind)
            if sealed := record["sealed"].get(self.recipient):
                self.keys[name] = SUITE.decrypt(bytes.fromhex(sealed), self.identity, info), record["writer"]
        check(name in self.keys, f"{name} is missing, or not sealed to this identity")
        return self.keys[name]

    def derived(self, writer: str, use: str) -> bytes:
        """Section 4: a key that follows from a writer's write key."""
        info = b"smsnapd v1 write key\0" + self.id + bytes.fromhex(writer)
        return derive(self.unseal("writer", f"keys/writers/{writer}", info)[0], self.id, f"smsnapd v1 {use}")

    def open(self, kind: int, name: str, key: bytes, key_id: str, data: bytes) -> bytes:
        """Section 5: the content of a sealed object."""
        Repository.reading, bound = name, [part.encode() for part in (name.split("/")[1], name)]
        magic, stated, salt, size = struct.unpack_from("<8s16s32sQ", data)
        right = magic == b"SMSN\1%c\0\0" % kind and stated.hex() == key_id and len(data) == 64 + size
        check(right, "it is no such object of version 1")
        context = data[:64] + self.id + b"".join(struct.pack("<H", len(part)) + part for part in bound)
        plain = AESGCM(derive(key, salt, "smsnapd v1 object")).decrypt(bytes(12), data[64:], context)
        frame, padding = plain[8:][: (end := int.from_bytes(plain[:8], "little"))], plain[8:][end:]
        check(not padding.strip(b"\0"), "its padding is not zeros")
        check(0 < zstandard.get_frame_parameters(frame).content_size <= LIMITS[kind], "it is too large")
        return zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)

    def manifest(self, name: str) -> Members:
        """Section 7: a manifest's members, and with them its name, hash, signer and unpacked tables."""
        data = self.read(name)
        writer, end = data[8:24].hex(), 64 + int.from_bytes(data[56:64], "little")
        content = self.open(MANIFEST, name, self.derived(writer, "catalog"), writer, data[:end])
        signed = b"smsnapd v1 manifest\0" + struct.pack("<H", len(name)) + name.encode() + content[64:]
        verify(self.writers[writer], content[:64], signed)
        m = parse(content[64:].decode("ascii"))
        check((m["format"], m["mode"], m["must_understand"]) == (1, "tar", []), "it needs a newer reader")
        stated = f"{m['sequence']:010}-{m['generation']:010}-{re.sub('[-:.]', '', m['time'])}-{m['kind']}"
        right = name == f"volumes/{m['volume']}/manifests/{stated}-{m['snapshot']}"
        check(right and m["repository"] == self.id.hex(), "it is another manifest")
        m |= {"name": name, "hash": blake3(data).hexdigest(), "signer": writer}
        m |= {CHUNK: base64.b64decode(m["chunks"]), CATALOG: base64.b64decode(m["catalog"])}
        rows = sorted((row[6], row[4]) for row in ROW.iter_unpack(m[CHUNK] + m[CATALOG]) if row[2] == 1)
        ends = [*accumulate((size for _, size in rows), initial=0)]
        check([*(offset for offset, _ in rows), len(data) - end] == ends, "its attachments are not as stated")
        return m

    def fetch(self, m: Members, kind: int, index: int) -> bytes:
        """Sections 6 to 8: the content of a chunk or a catalog segment, by its row in a manifest's table."""
        check(0 <= index < len(m[kind]) // ROW.size, "a chunk is not in the table")
        digest, key, place, length, size, stored, offset = ROW.unpack_from(m[kind], index * ROW.size)
        writer, use, path = m["signer"], "catalog", f"catalogs/{digest.hex()}-{m['signer']}"
        if kind == CHUNK:
            use, path = "chunk", f"chunks/{digest.hex()[:2]}/{digest.hex()}-{m['keys'][key]}"
        name = f"volumes/{m['volume']}/{path}"
        if name in self.held:
            return self.held[name]
        secret = self.derived(writer, "catalog")
        if kind == CHUNK:
            info = b"smsnapd v1 data key\0" + self.id + bytes.fromhex(m["keys"][key]) + m["volume"].encode()
            secret, writer = self.unseal("datakey", f"volumes/{m['volume']}/keys/{m['keys'][key]}", info)
        data = self.read(name, ["", m["name"], *m["attached_to"]][place], offset, size)
        check(len(data) == size and blake3(data).digest() == stored, "it is damaged")
        content = self.open(kind, name, secret, path[-32:], data)
        names_key = self.derived(writer, f"{use} names\0{m['volume']}")
        named = blake3(content, key=names_key).digest() == digest and len(content) == length
        check(named, "its content is not what its name says")
        self.held = dict([*self.held.items()][-3:]) | {name: content}
        return content

    def chain(self, names: list[str], last: int) -> list[Members]:
        """Section 7: the manifests from the full to the one at `last`, each the parent of the next."""
        first = max(i for i in range(last + 1) if names[i].split("-")[-2] == "full")
        # What a revoked writer signed counts only up to the head that was stated then: that may lie behind.
        chain = [self.manifest(name) for name in names[first : None if self.revoked else last + 1]]
        for parent, m in pairwise(chain):
            Repository.reading = m["name"]
            right = (parent["snapshot"], parent["hash"], parent["sequence"] + 1)
            stated = (m["parent"]["snapshot"], m["parent"]["hash"], m["sequence"])
            check(stated == right, "its parent is missing or another")
        for i, m in enumerate(chain[: last + 1 - first]):
            head = self.revoked.get(m["signer"], {m["volume"]: m["hash"]}).get(m["volume"])
            check(head in [after["hash"] for after in chain[i:]], f"{m['name']}: its writer was revoked before")
        return chain[: last + 1 - first]


class Columns(io.BytesIO):
    """Section 8: the columns of a catalog segment."""

    def ints(self, count: int) -> list[int]:
        """The next column, of integers."""
        encoding, width, base = struct.unpack("<BBq", self.read(10))
        planes = bytearray(8 * count)
        for plane in range(width):
            planes[plane::8] = self.read(count)
        values = [number + base for number in struct.unpack(f"<{count}Q", planes)]
        return [(value + 2**63) % 2**64 - 2**63 for value in (accumulate(values) if encoding else values)]

    def strings(self, count: int) -> list[bytes]:
        """The next column, of byte strings."""
        return [self.read(size) for size in self.ints(count)]


def key_of(path: bytes) -> bytes:
    """Section 1: a path, checked; with NUL for `/`, directories sort by components."""
    check(not path or {b"", b".", b".."}.isdisjoint(path.split(b"/")) and b"\0" not in path, "a path is wrong")
    return path.replace(b"/", b"\0")


def entries(m: Members, content: bytes) -> Iterator[tuple[bytes, Entry]]:
    """Section 8: the entries of a catalog segment by their paths."""
    columns = Columns(content)
    magic, d, n, x = struct.unpack("<8s3I", columns.read(20))
    check(magic == b"SMCT\1\0\0\0", "it is no catalog of version 1")
    directories, counts = columns.strings(d), columns.ints(d)
    kinds, flags, names = columns.ints(n), columns.ints(n), columns.strings(n)
    _ = [columns.ints(n) for _ in range(8)]  # mode to rdev: the headers have them
    targets, _, _, pieces = columns.strings(n), columns.strings(x), columns.ints(n), sum(columns.ints(n))
    _, _, lengths = columns.ints(pieces), columns.ints(pieces), columns.ints(n)
    extents = zip(*[columns.ints(sum(lengths)) for _ in range(3)], strict=True)
    check(len(columns.ints(n)) == sum(counts) and not columns.read(), "it is not as long as its columns")
    where = (directory for directory, count in zip(directories, counts, strict=True) for _ in range(count))
    last, end = -1, 0
    for directory, name, kind, flag, target, length in zip(where, names, kinds, flags, targets, lengths, strict=True):
        found = []
        for chunk, gap, blocks in islice(extents, length):
            start = gap + end if chunk == last else gap
            last, end = chunk, start + blocks
            found.append((m, chunk, 512 * start, 512 * blocks))
        check(b"/" not in name and bool(found) == (kind != TOMBSTONE), "an entry is wrong")
        path = key_of(directory + b"/" + name if directory else name)
        yield path, (kind, key_of(target) if flag & 1 else None, found)


def tree(repository: Repository, chain: list[Members]) -> Iterator[Entry]:
    """Section 8: the entries of a snapshot in catalog order, its chain folded."""
    found: dict[bytes, Entry] = {}
    for m in chain:
        contents = (repository.fetch(m, CATALOG, index) for index in range(len(m[CATALOG]) // ROW.size))
        layer = [entry for content in contents for entry in entries(m, content)]
        keys = [path.rpartition(b"\0")[::2] for path, _ in layer]
        check(all(before < after for before, after in pairwise(keys)), "entries are not in order")
        cut = {path for path, entry in layer if entry[0] != DIRECTORY and found.get(path, entry)[0] == DIRECTORY}
        below = tuple(path + b"\0" for path in cut)
        found = {path: entry for path, entry in found.items() if not path.startswith(below)} if cut else found
        found |= layer
    kept: dict[bytes, Entry] = {}
    for path in sorted(found, key=lambda path: path.rpartition(b"\0")[::2]):
        kind, alias_of, _ = entry = found[path]
        if kind != TOMBSTONE:
            parent = kept.get(path.rpartition(b"\0")[0]) if path else (DIRECTORY,)
            check(parent and parent[0] == DIRECTORY, f"{path!r} lies in no directory")
            check(alias_of is None or kept[alias_of][1] is None, f"{path!r} is an alias of an alias")
            kept[path] = entry
            yield entry


def write_tar(repository: Repository, chain: list[Members]) -> None:
    """Section 9: the archive of the last snapshot of a chain, to standard output."""
    for _, _, extents in tree(repository, chain):
        for m, chunk, offset, length in extents:
            content = memoryview(repository.fetch(m, CHUNK, chunk))[offset:][:length]
            check(offset >= 0 and 0 < length == len(content), "an extent goes beyond its chunk")
            sys.stdout.buffer.write(content)
    sys.stdout.buffer.write(bytes(1024))
    sys.stdout.buffer.flush()


def show(repository: Repository, names: list[str]) -> int:
    """Print the recovery points; 1 if a manifest cannot be used, or follows from none."""
    status, parent = 0, None
    for name in names:
        try:
            m = repository.manifest(name)
            stated = m["parent"] and m["parent"]["hash"]
            check(stated == parent, "the manifest before it is missing or another")
            parent, numbers = m["hash"], m["statistics"]
            whole = "" if m["completeness"]["complete"] else "  INCOMPLETE"
            print(f"{m['snapshot']}  {m['time']}  {m['kind']:11}  {numbers['files']} files  {numbers['bytes']} bytes{whole}")
        except Exception as error:
            status, parent = 1, None
            print(f"{name}  DAMAGED: {str(error) or type(error).__name__}")
    return status


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", metavar="REPOSITORY_DIRECTORY")
    parser.add_argument("--volume", help="needed if there are several")
    parser.add_argument("--snapshot", default="latest", metavar="ID")
    parser.add_argument("--list", action="store_true", help="print the recovery points")
    arguments = parser.parse_args()
    repository = Repository(arguments.directory)
    volumes = [name[8:] for name in repository.names("volumes/", arguments.volume and re.escape(arguments.volume) or ".*")]
    check(len(volumes) == 1, f"choose a --volume: {volumes}")
    listed = repository.names(f"volumes/{volumes[0]}/manifests/", MANIFEST_NAME)
    names = list({name.rpartition("/")[2][:10]: name for name in listed}.values())
    if arguments.list:
        sys.exit(show(repository, names))
    wanted = "" if arguments.snapshot == "latest" else arguments.snapshot
    matches = [i for i, name in enumerate(names) if name.rpartition("-")[2].startswith(wanted)]
    check(matches and (not wanted or len(matches) == 1), f"there is no snapshot {wanted}")
    check(not sys.stdout.isatty(), "send it to a file")
    write_tar(repository, repository.chain(names, matches[-1]))


if __name__ == "__main__":
    try:
        main()
    except Exception as error:
        sys.exit(f"recover.py: {Repository.reading}: {str(error) or type(error).__name__}")
