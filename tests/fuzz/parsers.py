"""Every parser of bytes that come out of a repository, as a function that a fuzzer feeds.

Checksums, signatures and seals are put on here: what a fuzzer could never guess would keep it from what lies
behind. Each parser raises `DamageError`, or one of its other refusals, or what it gives is sound.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

from blake3 import blake3

from smsnapd.daemon.words import from_words, is_words
from smsnapd.engine.environment.report import decode_report, encode_report
from smsnapd.engine.trees.fold import checked, fold
from smsnapd.errors import DamageError, SmsnapError, WrongKeyError
from smsnapd.format import garbage, names, record
from smsnapd.format.catalog import Order, decode_segment, encode_segment
from smsnapd.format.codec import Context, ObjectType, _decompress, _frame, open_sealed, parse_header
from smsnapd.format.keys import (
    Identity,
    Recipient,
    WriteKey,
    open_data_key,
    open_write_key,
    parse_write_key,
)
from smsnapd.format.manifest_object import _parse as parse_manifest
from smsnapd.format.manifest_object import decode_manifest
from smsnapd.format.members import canonical_json, parse_canonical_json
from smsnapd.format.names import GarbageName, ManifestName, TagName
from smsnapd.format.record import (
    DataKeyRecord,
    Keyslot,
    Lease,
    RepositoryRecord,
    WriterKey,
    decode_keyslot,
)
from smsnapd.format.roster import Roster
from smsnapd.format.signed import seal_signed
from smsnapd.format.table import decode_table
from smsnapd.format.tag import check_label, decode_tag
from smsnapd.model import Entry, Kind, Listing, data_bytes, join_path
from smsnapd.volume.archive.members import TarReader
from smsnapd.volume.archive.stream import Peekable
from smsnapd.volume.tarball.apply import ApplyOptions, Target

VECTORS = Path(__file__).parents[1] / "vectors" / "format-1.json"
LIMIT = 1 << 20
"""Bytes of content that a parser may make of one input here; the format's own take too long to fill."""


def _known() -> tuple[bytes, Identity, WriteKey]:
    vectors = json.loads(VECTORS.read_text(encoding="utf-8"))
    repository_id = bytes.fromhex(vectors["repository_id"])
    identity = Identity(bytes.fromhex(vectors["identity"]["secret"]))
    return repository_id, identity, WriteKey(repository_id, bytes.fromhex(vectors["write_key"]["secret"]))


REPOSITORY_ID, IDENTITY, WRITE_KEY = _known()
VOLUME = "home"
SLOT = "ff6e60b0c896272b"
DATA_KEY_NAME = names.DataKeyName(VOLUME, bytes.fromhex("59e32e29646fba6e9cfaa5a3e196b0d2"), 2)
MANIFEST_NAME = ManifestName(VOLUME, 2, 1, 1_767_323_045_000_006, "incremental", "0123456789abcdef")
GARBAGE_NAME = GarbageName(VOLUME, 1_767_323_045_000_006, "0123456789abcdef")
TAG_NAME = TagName(VOLUME, 1_767_323_045_000_006, "0123456789abcdef")


# --- records


def _dressed(kind: record.RecordType, body: bytes, sign: object) -> bytes:
    """A record with this second line, signed and with its checksum."""
    data = f"smsnapd {kind} 1\n".encode() + body + b"\n"
    if sign is not None:
        data += f"ed25519 {sign.sign(b'smsnapd v1 record' + bytes(1) + data).hex()}\n".encode()  # type: ignore[attr-defined]
    return data + f"blake3 {blake3(data).hexdigest()}\n".encode()


def repository_record(data: bytes) -> None:
    RepositoryRecord.decode(_dressed("repository", data, IDENTITY.root_private), IDENTITY.root_public)


def roster(data: bytes) -> None:
    dressed = _dressed("roster", data, IDENTITY.root_private)
    for sequence in (1, 2):
        with suppress(DamageError):
            Roster.decode(dressed, sequence, REPOSITORY_ID, IDENTITY.root_public)


def keyslot(data: bytes) -> None:
    slot = decode_keyslot(_dressed("keyslot", data, None), SLOT, REPOSITORY_ID)
    if isinstance(slot, Keyslot):
        assert slot.memory_kib <= record.MEMORY_KIB_LIMIT and slot.iterations <= record.ITERATIONS_LIMIT
    else:
        assert names.is_volume_name(slot.volume) and 1 <= len(slot.sealed) <= record.KMS_LIMIT


def writer_record(data: bytes) -> None:
    dressed = _dressed("writer", data, IDENTITY.root_private)
    name = names.WriterName(WRITE_KEY.writer_id, None)
    WriterKey.decode(dressed, name, REPOSITORY_ID, IDENTITY.root_public)
    open_write_key(dressed, name, REPOSITORY_ID, IDENTITY)


def data_key_record(data: bytes) -> None:
    dressed = _dressed("datakey", data, WRITE_KEY.signing)
    DataKeyRecord.decode(dressed, DATA_KEY_NAME, REPOSITORY_ID, lambda _: WRITE_KEY.verify_key)
    open_data_key(dressed, DATA_KEY_NAME, REPOSITORY_ID, IDENTITY, lambda _: WRITE_KEY.verify_key)


def lease(data: bytes) -> None:
    Lease.decode(_dressed("lease", data, None), VOLUME, REPOSITORY_ID)


def bare_record(data: bytes) -> None:
    """As it lies there, nothing put on."""
    RepositoryRecord.decode(data, None)


def canonical(data: bytes) -> None:
    members = parse_canonical_json(data, "read it")
    assert canonical_json(json.loads(data)) == data
    for name in members.names():
        for read in (members.text, members.integer, members.texts, members.objects, members.nested):
            with suppress(DamageError):
                read(name)


# --- sealed objects


def header(data: bytes) -> None:
    found = parse_header(data)
    assert found.sealed_size >= 4096


def sealed(data: bytes) -> None:
    open_sealed(data, ObjectType.CHUNK, bytes(32), Context(REPOSITORY_ID, VOLUME, "any"))


def frame(data: bytes) -> None:
    """What a seal holds: it states how much it is, and is never more."""
    content = _decompress(_frame(data, "open it"), LIMIT, "open it")
    assert 1 <= len(content) <= LIMIT


def manifest_text(data: bytes) -> None:
    found = parse_manifest(data, MANIFEST_NAME, REPOSITORY_ID, WRITE_KEY.writer_id)
    for issue in found.completeness.incomplete:
        check_path(issue.path)


def manifest_object(data: bytes) -> None:
    key = WRITE_KEY
    decode_manifest(data, MANIFEST_NAME, REPOSITORY_ID, lambda _: key.catalog_key, lambda _: key.verify_key)


def garbage_text(data: bytes) -> None:
    found = garbage._parse(data, GARBAGE_NAME, REPOSITORY_ID)
    for name in found.objects:
        assert names.parse_disposable(name) is not None


def table(data: bytes) -> None:
    rows = decode_table(data.decode("latin-1"), [bytes(16)], ["", "own"], 32 << 20, "read it")
    assert all(0 < row.length <= 32 << 20 for row in rows)


# --- catalogs, and what a restore makes of them


def check_path(path: bytes) -> None:
    parts = path.split(b"/") if path else []
    assert b"\0" not in path and not any(part in (b"", b".", b"..") for part in parts), path


def _segments(data: bytes) -> list[list[Listing]]:
    """The input as up to three catalogs, each of one segment: two bytes of length before all but the last."""
    pieces = []
    for _ in range(2):
        size = int.from_bytes(data[:2], "little")
        if size and len(data) > size + 2:
            pieces.append(data[2 : size + 2])
            data = data[size + 2 :]
        else:
            data = data[2:]
    return [decode_segment(piece, 0, LIMIT) for piece in (*pieces, data)]


def catalog(data: bytes) -> None:
    listings = decode_segment(data, 5, LIMIT)
    order = Order()
    for listing in listings:
        order.check(listing)
        check_path(listing.directory)
    assert decode_segment(encode_segment(listings), 0) == listings


def tree(data: bytes) -> None:
    """Layers folded: whatever comes out is a tree, and its paths are paths."""
    for listing in checked(fold(_segments(data))):
        for entry in listing.entries:
            check_path(join_path(listing.directory, entry.name))


def applied(data: bytes) -> None:
    """A tree restored, file by file, as whoever runs this; nothing beside the target is ever changed."""
    listings = list(islice(checked(fold(_segments(data))), 50))
    if sum(len(listing.entries) for listing in listings) > 100:
        return
    with tempfile.TemporaryDirectory(dir=_memory()) as place:
        outside, root = Path(place, "outside"), Path(place, "target")
        outside.mkdir()
        (outside / "precious").write_text("precious")
        before = _looked_at(outside)
        _apply(listings, os.fsencode(root))
        assert _looked_at(outside) == before
        assert sorted(os.listdir(place)) == ["outside", "target"]


def _memory() -> str | None:
    return "/dev/shm" if os.path.isdir("/dev/shm") else None


def _looked_at(place: Path) -> list[tuple[int, int, int, bytes]]:
    precious = place / "precious"
    found = [place.stat(), precious.stat()]
    return [(status.st_mode, status.st_mtime_ns, status.st_uid, precious.read_bytes()) for status in found]


def _apply(listings: list[Listing], root: bytes) -> None:
    os.mkdir(root)
    with suppress(SmsnapError), Target(root, ApplyOptions(overwrite="always")) as target:
        for path, entry in _entries(listings):
            if entry.kind == Kind.DIRECTORY:
                target.make_directory(path)
        for path, entry in _entries(listings):
            _apply_one(target, path, entry)
        for path, entry in reversed(list(_entries(listings))):
            if entry.kind == Kind.DIRECTORY:
                target.finish_directory(path, entry)


def _entries(listings: list[Listing]) -> Iterator[tuple[bytes, Entry]]:
    for listing in listings:
        for entry in listing.entries:
            yield join_path(listing.directory, entry.name), entry


def _apply_one(target: Target, path: bytes, entry: Entry) -> None:
    if entry.flags & 1:
        target.make_link(entry.target, path, entry)
    elif entry.kind == Kind.REGULAR:
        if data_bytes(entry) <= LIMIT:
            target.write_small(path, entry, bytes(data_bytes(entry)))
    elif entry.kind == Kind.SYMLINK:
        target.make_symlink(path, entry)
    elif entry.kind in (Kind.FIFO, Kind.CHARACTER, Kind.BLOCK):
        target.make_special(path, entry)


# --- names, and what people type


def object_name(data: bytes) -> None:
    """A name is none of ours, or it is written just so."""
    text = data.decode("utf-8", "replace")
    for parse in (ManifestName.parse, GarbageName.parse):
        found = parse(text)
        assert found is None or found.object_name() == text
    for parse_name, write in (
        (names.parse_chunk_name, names.chunk_name),
        (names.parse_catalog_name, names.catalog_name),
        (names.parse_data_key_name, names.data_key_name),
        (names.parse_writer_name, names.writer_name),
    ):
        parts = parse_name(text)
        assert parts is None or write(*parts) == text
    sequence = names.parse_roster_name(text)
    assert sequence is None or names.roster_name(sequence) == text
    slot = names.parse_keyslot_name(text)
    assert slot is None or names.keyslot_name(slot) == text
    names.volume_of(text)
    names.parse_disposable(text)
    names.parse_time_us(text)


def typed(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    with suppress(WrongKeyError):
        assert len(Identity.from_recovery_key(text).secret) == 32
    with suppress(WrongKeyError):
        parse_write_key(text)
    with suppress(WrongKeyError):
        Recipient.from_text(text)
    if is_words(text):
        from_words(text)


# --- what came later: tags, reports, archives


def tag(data: bytes) -> None:
    context = Context(REPOSITORY_ID, VOLUME, TAG_NAME.object_name())
    sealed_tag = seal_signed(ObjectType.TAG, context, data, WRITE_KEY) if data else b""
    keys = (lambda _: WRITE_KEY.catalog_key), (lambda _: WRITE_KEY.verify_key)
    found = decode_tag(sealed_tag, TAG_NAME, REPOSITORY_ID, *keys)
    check_label(found.label)


def report(data: bytes) -> None:
    encode_report(decode_report(data, "read it"))


def archive(data: bytes) -> None:
    """A tarball that somebody gives to `import`: whatever its members say, their data are its own."""
    source = Peekable(io.BytesIO(data))
    tar = TarReader(source, "read it")
    read = 0
    for _ in tar:
        while piece := tar.read(1 << 16):
            read += len(piece)
    assert read <= len(data)


PARSERS: dict[str, Callable[[bytes], None]] = {
    parser.__name__: parser
    for parser in (
        repository_record, roster, keyslot, writer_record, data_key_record, lease, bare_record, canonical,
        header, sealed, frame, manifest_text, manifest_object, garbage_text, table,
        catalog, tree, applied, object_name, typed, tag, report, archive,
    )
}  # fmt: skip
"""By name. An input's first byte, modulo their number, says which is fed."""


def feed(data: bytes) -> None:
    """One input; raises whatever a parser must not."""
    if data:
        parser = list(PARSERS.values())[data[0] % len(PARSERS)]
        with suppress(SmsnapError):
            parser(data[1:])
