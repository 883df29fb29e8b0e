"""Writes what fuzzing begins from: the format's vectors, one file for each object and parser.

Run from the root of the checkout: `PYTHONPATH=. python tests/fuzz/make_corpus.py DIRECTORY`.
"""

from __future__ import annotations

import io
import json
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from smsnapd.engine.environment.report import VERSION, Report, encode_report
from smsnapd.format import names
from smsnapd.format.catalog import encode_segment
from smsnapd.format.codec import Context, ObjectType, open_sealed
from smsnapd.format.garbage import GarbageList, _members
from smsnapd.format.members import canonical_json
from smsnapd.format.names import format_time_us
from smsnapd.model import Entry, Extent, Flag, Kind, Listing
from tests.fuzz.parsers import GARBAGE_NAME, PARSERS, REPOSITORY_ID, TAG_NAME, VECTORS, VOLUME, WRITE_KEY
from tests.fuzz.test_catalog_fuzz import SEEDS

RECORDS = {
    "repository": "repository_record",
    "keys/roster": "roster",
    "keys/slots": "keyslot",
    "keys/writers": "writer_record",
    "volumes/home/keys": "data_key_record",
    "volumes/home/lease": "lease",
}


def seeds() -> Iterator[tuple[str, bytes]]:
    """A parser's name, and an input of its."""
    vectors = json.loads(VECTORS.read_text(encoding="utf-8"))
    objects = {name: text.encode() for name, text in vectors["records"].items()}
    objects |= {name: bytes.fromhex(digits) for name, digits in vectors["sealed"].items()}
    for name, data in objects.items():
        kind = next((kind for start, kind in RECORDS.items() if name.startswith(start)), None)
        if kind is not None:
            yield kind, data.split(b"\n")[1]
            yield "bare_record", data
            yield "canonical", data.split(b"\n")[1]
        else:
            yield from _manifest(name, data)
        yield "object_name", name.encode()
    yield "sealed", bytes.fromhex(vectors["chunk"]["object"])
    yield "object_name", vectors["chunk"]["name"].encode()
    yield "typed", vectors["identity"]["recovery_key"].encode()
    yield "typed", vectors["write_key"]["file"].encode()
    for seed in SEEDS:
        yield "catalog", seed
    for seed in (encode_segment(whole()), encode_segment(whole()[:1])):
        later = encode_segment([Listing(b"", [Entry(b"d", int(Kind.TOMBSTONE))])])
        for layered in (bytes(4) + seed, len(seed).to_bytes(2, "little") + seed + bytes(2) + later):
            yield "tree", layered
            yield "applied", layered
    made = GarbageList(
        REPOSITORY_ID, GARBAGE_NAME, 1, None, "x", (names.chunk_name(VOLUME, bytes(32), bytes(16)),)
    )
    yield from newer()
    yield "garbage_text", canonical_json(_members(made))


def whole() -> list[Listing]:
    """A tree with an entry of every kind, which a restore takes."""
    kinds = (Kind.REGULAR, Kind.SYMLINK, Kind.FIFO, Kind.CHARACTER, Kind.BLOCK)
    below = [
        Entry(b"%d" % kind, int(kind), mode=0o4755, rdev=1 << 32 | 3, header=Extent(0, 512 * kind, 512))
        for kind in kinds
    ]
    below[1] = msgspec.structs.replace(below[1], target=b"../../outside", size=13)
    first = Entry(b"f", 1, links=2, size=5, header=Extent(1, 0, 512), content=(Extent(1, 512, 512),))
    alias = Entry(b"g", 1, int(Flag.ALIAS), links=2, target=b"f", size=5, header=Extent(1, 1024, 512))
    root = Entry(b"", 2, header=Extent(2, 0, 512))
    return [
        Listing(b"", [root, Entry(b"d", 2, header=Extent(2, 512, 512)), first, alias]),
        Listing(b"d", below),
    ]


def newer() -> Iterator[tuple[str, bytes]]:
    """Tags, reports, archives."""
    said = {"repository": REPOSITORY_ID.hex(), "volume": VOLUME, "id": TAG_NAME.id, "format": 1}
    said |= {"time": format_time_us(TAG_NAME.time_us), "snapshot": "ab" * 8, "tag": "before", "set": True}
    yield "tag", canonical_json({**said, "must_understand": []})
    yield "report", encode_report(Report(VERSION, "2026-01-02T03:04:05.000006Z", "/v", notes=("a note",)))
    for kind in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT):
        held = io.BytesIO()
        with tarfile.open(fileobj=held, mode="w", format=kind) as tar:
            for name, type_ in (
                ("file", tarfile.REGTYPE),
                ("link", tarfile.SYMTYPE),
                ("dir", tarfile.DIRTYPE),
            ):
                member = tarfile.TarInfo(name)
                member.type, member.linkname, member.size = (
                    type_,
                    "file",
                    3 if type_ == tarfile.REGTYPE else 0,
                )
                tar.addfile(member, io.BytesIO(b"abc"))
        yield "archive", held.getvalue()[:4096] + bytes(1024)


def _manifest(name: str, data: bytes) -> Iterator[tuple[str, bytes]]:
    yield "manifest_object", data
    yield "header", data[:4096]
    content = open_sealed(
        data, ObjectType.MANIFEST, WRITE_KEY.catalog_key, Context(REPOSITORY_ID, VOLUME, name)
    )
    yield "manifest_text", content[64:]
    yield "table", json.loads(content[64:])["chunks"].encode()
    frame = bytes.fromhex("28b52ffd2001090000") + b"x"
    yield "frame", len(frame).to_bytes(8, "little") + frame + bytes(100)


def main(directory: Path) -> None:
    """Write the files."""
    directory.mkdir(parents=True, exist_ok=True)
    order = list(PARSERS)
    for number, (parser, data) in enumerate(seeds()):
        (directory / f"{parser}-{number}").write_bytes(bytes([order.index(parser)]) + data)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
