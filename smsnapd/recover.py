"""Recover a snapshot from a copy of a repository, without smsnapd: a tar archive on standard output.

Written from FORMAT.md, whose sections are named below. Needs cryptography>=50, zstandard and blake3.
From S3, first: aws s3 sync s3://BUCKET/PREFIX REPOSITORY_DIRECTORY. The recovery key is $SMSNAP_RECOVERY_KEY;
without one, the passphrase is $SMSNAP_PASSPHRASE, or asked for. Extract as root, in an empty directory:
tar -xpf out.tar --numeric-owner --acls --xattrs --xattrs-include='*' --delay-directory-restore
The archive is whole only if the exit status is 0. A snapshot needs the manifests of its chain and no others.
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
from contextlib import suppress
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
CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode  # section 1
SUITE = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
Members = dict[Any, Any]
# Kind, what an alias is of (else None), and extents: whose table, row, offset and length in bytes.
Entry = tuple[int, bytes | None, list[tuple[Members, int, int, int]]]


def check(holds: object, why: str) -> None:
    """Stop, and say why, unless something holds."""
    if not holds:
        raise ValueError(why)


def unhex(text: str) -> bytes:
    """Section 1: bytes of lower-case hex."""
    check(bytes.fromhex(text).hex() == text, "its hex is not lower-case")
    return bytes.fromhex(text)


def derive(secret: bytes, salt: bytes, info: str, size: int = 32) -> bytes:
    """Section 1: HKDF."""
    return hkdf.HKDF(hashes.SHA256(), size, salt, info.encode()).derive(secret)


def verify(public: str, signature: bytes, signed: bytes) -> None:
    """Section 1: an Ed25519 signature."""
    ed25519.Ed25519PublicKey.from_public_bytes(unhex(public)).verify(signature, signed)


class Repository:
    """Sections 2 to 7: the objects of a repository, and the keys that open them."""

    reading = "the command line"

    def __init__(self, directory: str) -> None:
        """Trust the root of the identity, and the writers that the rosters name."""
        self.directory, self.id, self.root = directory, b"", ""
        self.keys: dict[str, tuple[bytes, str]] = {}
        self.held: dict[str, bytes] = {}
        repository = self.record("repository", "repository")
        self.id = unhex(repository["repository"])
        secret = self.identity_secret()
        seed = derive(secret, b"", "smsnapd v1 identity ml-kem-768", 64)
        kem = mlkem.MLKEM768PrivateKey.from_seed_bytes(seed)
        ecdh = x25519.X25519PrivateKey.from_private_bytes(derive(secret, b"", "smsnapd v1 identity x25519"))
        root = ed25519.Ed25519PrivateKey.from_private_bytes(derive(secret, b"", "smsnapd v1 identity root"))
        self.identity = hpke.MLKEM768X25519PrivateKey(kem, ecdh)
        public = kem.public_key().public_bytes_raw() + ecdh.public_key().public_bytes_raw()
        self.recipient = blake3(public).hexdigest()[:32]
        self.root = root.public_key().public_bytes_raw().hex()
        check(repository["root"] == self.root, "the key at hand is of another repository")
        roster = self.roster()
        self.writers = {writer["id"]: writer["public"] for writer in roster["writers"]}
        self.revoked = {revoked["id"]: revoked["heads"] for revoked in roster["revoked"]}

    def identity_secret(self) -> bytes:
        """Sections 3 and 4: out of the recovery key, or of a keyslot that the passphrase opens."""
        if key := re.sub(r"[-\s]", "", os.environ.get("SMSNAP_RECOVERY_KEY", "")).upper():
            Repository.reading = "the recovery key"
            secret = base64.b32decode(key.removeprefix("SMSNAPIDENTITY1") + "======")
            check(secret[32:] == blake3(secret[:32]).digest(4), "it is mistyped")
            return secret[:32]
        typed = os.environ.get("SMSNAP_PASSPHRASE") or getpass.getpass("Passphrase: ")
        for name in self.names("keys/slots/", "[0-9a-f]{16}"):
            with suppress(InvalidTag):
                return self.keyslot(name, unicodedata.normalize("NFC", typed).encode())
        raise ValueError("the passphrase is wrong")

    def keyslot(self, name: str, passphrase: bytes) -> bytes:
        """Section 3: the identity secret in a keyslot; InvalidTag if its passphrase is another."""
        slot = self.record(name, "keyslot")
        salt, nonce, sealed = unhex(slot["salt"]), unhex(slot["nonce"]), unhex(slot.pop("sealed"))
        memory, passes, lanes = slot["memory_kib"], slot["iterations"], slot["lanes"]
        fair = 8 * lanes <= memory <= 2_097_152 and passes <= 64 and lanes <= 64
        check(slot["kdf"] == "argon2id" and fair, "it asks for another derivation, or for too much")
        kdf = argon2.Argon2id(salt=salt, length=32, iterations=passes, lanes=lanes, memory_cost=memory)
        return AESGCM(kdf.derive(passphrase)).decrypt(nonce, sealed, CANONICAL(slot).encode())

    def roster(self) -> Members:
        """Section 3: the newest roster, which ends an unbroken row."""
        roster, previous = Members(), None
        for number, name in enumerate(self.names("keys/roster/", "[0-9]{10}"), 1):
            roster = self.record(name, "roster")
            check((roster["sequence"], roster["previous"]) == (number, previous), "the one before is missing")
            previous = blake3(self.read(name)).hexdigest()
        for key in roster["recipients"] + roster["writers"]:
            check(blake3(unhex(key["public"])).hexdigest()[:32] == key["id"], "an id is not its key's")
        return roster

    def names(self, folder: str, pattern: str) -> list[str]:
        """The objects in a folder whose names match, sorted."""
        Repository.reading = folder
        found = os.listdir(os.path.join(self.directory, folder))
        return sorted(folder + name for name in found if re.fullmatch(pattern, name))

    def read(self, name: str, host: str = "", offset: int = 0, size: int = 0) -> bytes:
        """An object; section 7: one that is attached to a manifest, its host, unless that is gone."""
        attached = host and os.path.exists(os.path.join(self.directory, host))
        Repository.reading = host if attached else name
        with open(os.path.join(self.directory, Repository.reading), "rb") as file:
            if attached:
                file.seek(64 + offset + int.from_bytes(file.read(64)[56:], "little"))
            return file.read(size if attached else -1)

    def record(self, name: str, kind: str) -> Members:
        """Section 3: the members of a record, verified."""
        data = self.read(name)
        first, text, *signature, digest, end = data.decode("ascii").split("\n")
        whole = digest == f"blake3 {blake3(data[: -len(digest) - 1]).hexdigest()}" and not end
        check(whole and first == f"smsnapd {kind} 1", f"it is damaged, or no {kind} of version 1")
        members: Members = json.loads(text)
        right = members["object"] == name and self.id.hex() in ("", members["repository"])
        check(right and CANONICAL(members) == text, "it is of another name or repository")
        if kind != "keyslot":
            signer = self.writers[members["writer"]] if kind == "datakey" else self.root or members["root"]
            signed = f"smsnapd v1 record\0{first}\n{text}\n".encode()
            verify(signer, unhex(signature[0].removeprefix("ed25519 ")), signed)
        return members

    def unseal(self, kind: str, name: str, info: bytes) -> tuple[bytes, str]:
        """Sections 2 to 4: a key that is sealed to the identity, and its writer."""
        folder, stem = os.path.split(name)
        for found in [] if name in self.keys else self.names(folder + "/", stem + "(-[0-9]{10})?"):
            record = self.record(found, kind)
            if sealed := record["sealed"].get(self.recipient):
                self.keys[name] = SUITE.decrypt(unhex(sealed), self.identity, info), record["writer"]
        check(name in self.keys, f"{name} is missing, or not sealed to this identity")
        return self.keys[name]

    def derived(self, writer: str, use: str) -> bytes:
        """Section 4: a key that follows from a writer's write key."""
        info = b"smsnapd v1 write key\0" + self.id + unhex(writer)
        return derive(self.unseal("writer", f"keys/writers/{writer}", info)[0], self.id, f"smsnapd v1 {use}")

    def open(self, kind: int, name: str, key: bytes, key_id: str, data: bytes) -> bytes:
        """Section 5: the content of a sealed object."""
        Repository.reading, bound = name, [text.encode() for text in (name.split("/")[1], name)]
        start, owner, salt, size = struct.unpack_from("<8s16s32sQ", data)
        right = (b"SMSN\1%c\0\0" % kind, unhex(key_id), len(data) - 64)
        check((start, owner, size) == right, "it is damaged, or not of version 1")
        context = data[:64] + self.id + b"".join(struct.pack("<H", len(text)) + text for text in bound)
        plain = AESGCM(derive(key, salt, "smsnapd v1 object")).decrypt(bytes(12), data[64:], context)
        end = 8 + int.from_bytes(plain[:8], "little")
        length = zstandard.get_frame_parameters(plain[8:end]).content_size
        check(0 < length <= LIMITS[kind] and not plain[end:].strip(b"\0"), "its content is not as it must be")
        return zstandard.ZstdDecompressor().decompress(plain[8:end], allow_extra_data=False)

    def manifest(self, name: str) -> Members:
        """Section 7: a manifest's members, and with them its name, hash, signer and decoded tables."""
        data = self.read(name)
        writer, end = data[8:24].hex(), 64 + int.from_bytes(data[56:64], "little")
        content = self.open(MANIFEST, name, self.derived(writer, "catalog"), writer, data[:end])
        signed = b"smsnapd v1 manifest\0" + struct.pack("<H", len(name)) + name.encode() + content[64:]
        verify(self.writers[writer], content[:64], signed)
        m: Members = json.loads(content[64:])
        check((m["format"], m["mode"], m["must_understand"]) == (1, "tar", []), "it needs a newer reader")
        stated = f"{m['sequence']:010}-{m['generation']:010}-{re.sub('[-:.]', '', m['time'])}-{m['kind']}"
        stated = f"volumes/{m['volume']}/manifests/{stated}-{m['snapshot']}"
        check((stated, m["repository"]) == (name, self.id.hex()), "it is of another name or repository")
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
        volume, named = m["volume"], digest.hex()
        key_id = m["keys"][key] if kind == CHUNK else m["signer"]
        folder = f"chunks/{named[:2]}" if kind == CHUNK else "catalogs"
        name = f"volumes/{volume}/{folder}/{named}-{key_id}"
        if name not in self.held:
            if kind == CHUNK:
                info = b"smsnapd v1 data key\0" + self.id + unhex(key_id) + volume.encode()
                secret, writer = self.unseal("datakey", f"volumes/{volume}/keys/{key_id}", info)
            else:
                secret, writer = self.derived(key_id, "catalog"), key_id
            names_key = self.derived(writer, f"{'chunk' if kind == CHUNK else 'catalog'} names\0{volume}")
            data = self.read(name, ["", m["name"], *m["attached_to"]][place], offset, size)
            check((len(data), blake3(data).digest()) == (size, stored), "it is damaged")
            content = self.open(kind, name, secret, key_id, data)
            right = (len(content), blake3(content, key=names_key).digest())
            check((length, digest) == right, "its content is not what its name says")
            self.held = dict([*self.held.items()][-3:]) | {name: content}
        return self.held[name]

    def chain(self, names: list[str], last: int) -> list[Members]:
        """Section 7: the manifests from the full to the one at `last`, each the parent of the next."""
        fulls = [i for i in range(last + 1) if names[i].split("-")[-2] == "full"]
        check(fulls, "the full before it is missing")
        first = fulls[-1]
        # The head up to which a revoked writer is believed may lie behind what is asked for.
        chain = [self.manifest(name) for name in names[first : None if self.revoked else last + 1]]
        for before, m in pairwise(chain):
            follows = m["sequence"] == before["sequence"] + 1 and m["parent"]["hash"] == before["hash"]
            check(follows, f"the parent of {m['name']} is missing or another")
        for i, m in enumerate(chain[: last + 1 - first]):
            heads = self.revoked.get(m["signer"])
            counts = heads is None or heads.get(m["volume"]) in [later["hash"] for later in chain[i:]]
            check(counts, f"the writer of {m['name']} had been revoked")
        return chain[: last + 1 - first]


class Columns(io.BytesIO):
    """Section 8: the columns of a catalog segment, one after the other."""

    def ints(self, count: int) -> list[int]:
        """A column of integers."""
        encoding, width, base = struct.unpack("<BBq", self.read(10))
        planes = bytearray(8 * count)
        for plane in range(width):
            planes[plane::8] = self.read(count)
        values = [number + base for number in struct.unpack(f"<{count}Q", planes)]
        return [(value + 2**63) % 2**64 - 2**63 for value in (accumulate(values) if encoding else values)]

    def strings(self, count: int) -> list[bytes]:
        """A column of byte strings."""
        return [self.read(size) for size in self.ints(count)]


def sortable(path: bytes) -> bytes:
    """Section 1: a path, checked, with NUL for `/`: so directories sort component by component."""
    wrong = path and (b"\0" in path or {b"", b".", b".."} & {*path.split(b"/")})
    check(not wrong, f"the path {path!r} is wrong")
    return path.replace(b"/", b"\0")


def entries(m: Members, content: bytes) -> Iterator[tuple[bytes, Entry]]:
    """Section 8: the entries of a catalog segment, by their paths."""
    columns = Columns(content)
    magic, d, n, x = struct.unpack("<8s3I", columns.read(20))
    check(magic == b"SMCT\1\0\0\0", "it is no catalog of version 1")
    directories, counts = columns.strings(d), columns.ints(d)
    kinds, flags, names = columns.ints(n), columns.ints(n), columns.strings(n)
    _ = [columns.ints(n) for _ in range(8)]  # mode to rdev: the headers have them
    targets, _, _, pieces = columns.strings(n), columns.strings(x), columns.ints(n), sum(columns.ints(n))
    _, _, lengths = columns.ints(pieces), columns.ints(pieces), columns.ints(n)
    rows = zip(*[columns.ints(sum(lengths)) for _ in range(3)], strict=True)
    check(len(columns.ints(n)) == sum(counts) and not columns.read(), "it is not as long as its columns")
    where = [directory for directory, count in zip(directories, counts, strict=True) for _ in range(count)]
    last, end = -1, 0
    for i, (directory, name) in enumerate(zip(where, names, strict=True)):
        extents = []
        for chunk, gap, blocks in islice(rows, lengths[i]):
            start = gap + (end if chunk == last else 0)
            last, end = chunk, start + blocks
            extents.append((m, chunk, 512 * start, 512 * blocks))
        check(b"/" not in name and bool(extents) == (kinds[i] != TOMBSTONE), "an entry is wrong")
        target = sortable(targets[i]) if flags[i] & 1 else None
        yield sortable(directory + b"/" + name if directory else name), (kinds[i], target, extents)


def fold(below: dict[bytes, Entry], layer: list[tuple[bytes, Entry]]) -> dict[bytes, Entry]:
    """Section 8: a tree with the entries of the next catalog laid over it, tombstones too."""
    keys = [path.rpartition(b"\0")[::2] for path, _ in layer]
    check(all(before < after for before, after in pairwise(keys)), "entries are not in order")
    cut = [path for path, (kind, *_) in layer if kind != DIRECTORY and below.get(path, (0,))[0] == DIRECTORY]
    if cut:
        prefixes = tuple(path + b"\0" for path in cut)
        below = {path: entry for path, entry in below.items() if not path.startswith(prefixes)}
    below.update(layer)
    return below


def tree(repository: Repository, chain: list[Members]) -> Iterator[Entry]:
    """Section 8: the entries of a snapshot's tree, in catalog order."""
    folded: dict[bytes, Entry] = {}
    for m in chain:
        contents = (repository.fetch(m, CATALOG, index) for index in range(len(m[CATALOG]) // ROW.size))
        folded = fold(folded, [entry for content in contents for entry in entries(m, content)])
    found: dict[bytes, Entry] = {}
    for path in sorted(folded, key=lambda path: path.rpartition(b"\0")[::2]):
        kind, original, _ = entry = folded[path]
        if kind != TOMBSTONE:
            parent = found.get(path.rpartition(b"\0")[0]) if path else entry
            check(parent and parent[0] == DIRECTORY, f"{path!r} lies in no directory")
            first = found.get(original) if original is not None else None
            check(original is None or (first and first[1] is None), f"{path!r} is an alias of nothing")
            found[path] = entry
            yield entry


def write_tar(repository: Repository, chain: list[Members]) -> None:
    """Section 9: the archive of a snapshot, to standard output."""
    check(not sys.stdout.isatty(), "the archive is no text: redirect it")
    for _, _, extents in tree(repository, chain):
        for m, chunk, offset, length in extents:
            content = memoryview(repository.fetch(m, CHUNK, chunk))[offset : offset + length]
            check(offset >= 0 and 0 < length == len(content), "an extent is not in its chunk")
            sys.stdout.buffer.write(content)
    sys.stdout.buffer.write(bytes(1024))
    sys.stdout.buffer.flush()


def show(repository: Repository, names: list[str]) -> int:
    """Print the recovery points, each verified; 1 if one is damaged."""
    status, before = 0, None  # the hash of the manifest before, None for the first, "" if it is damaged
    for name in names:
        try:
            m = repository.manifest(name)
            check(before in ("", m["parent"] and m["parent"]["hash"]), "its parent is missing or another")
            before, mark = m["hash"], "" if m["completeness"]["complete"] else "  INCOMPLETE"
            print(f"{m['snapshot']}  {m['time']}  {m['kind']:11}  {m['statistics']['files']:9} files{mark}")
        except Exception as error:
            status, before = 1, ""
            print(f"{name.rpartition('-')[2]}  DAMAGED: {str(error) or type(error).__name__}")
    return status


def main() -> int:
    """Do what the command line asks for; the exit status."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("directory", metavar="REPOSITORY_DIRECTORY")
    parser.add_argument("--volume", help="needed if there are several")
    parser.add_argument("--snapshot", default="latest", metavar="ID|latest")
    parser.add_argument("--list", action="store_true", help="print the recovery points instead")
    arguments = parser.parse_args()
    repository = Repository(arguments.directory)
    volumes = repository.names("volumes/", re.escape(arguments.volume or "") or ".+")
    check(len(volumes) == 1, f"choose a --volume: {', '.join(volumes)}")
    found = repository.names(f"{volumes[0]}/manifests/", MANIFEST_NAME)
    names = list({name.rpartition("/")[2][:10]: name for name in found}.values())  # highest generations
    if arguments.list:
        return show(repository, names)
    wanted = arguments.snapshot.removeprefix("latest")
    matches = [i for i, name in enumerate(names) if name.rpartition("-")[2].startswith(wanted)]
    check(matches and (not wanted or len(matches) == 1), f"there is not one snapshot {arguments.snapshot}")
    write_tar(repository, repository.chain(names, matches[-1]))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Exception as error:
        sys.exit(f"recover.py: {Repository.reading}: {str(error) or type(error).__name__}")
