"""Images for tests: what a file holds, made a block snapshot by the engine's pieces; deltas go on from it."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from smsnapd.engine.chain.catalog import CatalogBuilder
from smsnapd.engine.chain.tenure import Tenure
from smsnapd.engine.history import History
from smsnapd.format import names
from smsnapd.format.codec import Context, ObjectType, Sealer, chunk_hash
from smsnapd.format.image import CELL, UNIT, Image
from smsnapd.format.manifest import Completeness, Consistency, Manifest, ParentRef, Source, Statistics
from smsnapd.format.names import ManifestName
from smsnapd.model import ChunkRef, Entry, Extent, Flag, Kind, Listing, Segment
from smsnapd.repository.manifests import Recorded, commit_manifest
from tests.property.protected import VOLUME, Protected

CHUNK = 1024 * 1024
PATIENCE_S = float(os.environ.get("SMSNAP_TEST_PATIENCE_S", "180"))
PIECE = 16 * 1024 * 1024

NEEDS_LOOP = [
    pytest.mark.root,
    pytest.mark.loop,
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("mkfs.ext4") is None or not Path("/dev/loop-control").exists(),
        reason="needs root, loop devices and mkfs.ext4",
    ),
]
"""The marks of a module whose tests mount file systems of their own."""

NEEDS_FUSE = pytest.mark.skipif(
    shutil.which("fusermount3") is None or not Path("/dev/fuse").exists(), reason="needs FUSE (fuse3)"
)
"""And that of one which looks into images."""


def make_ext4(path: Path, size: str, *options: str) -> Path:
    """An empty ext4 in a sparse file."""
    subprocess.run(["truncate", "-s", size, path], check=True)
    subprocess.run(["mkfs.ext4", "-q", "-F", *options, path], check=True)
    return path


@contextmanager
def mounted(image: Path, point: Path, options: str = "loop") -> Iterator[Path]:
    """The file system in `image` at `point`, for as long as the context lasts."""
    point.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", options, image, point], check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", point], check=True)
        _await_written(image)


def _await_written(image: Path) -> None:
    """Until nobody has the file system any more: a mount namespace made meanwhile has it a little longer."""
    command = ["losetup", "-n", "-O", "NAME", "-j", image]
    deadline = time.monotonic() + PATIENCE_S
    while subprocess.run(command, capture_output=True, check=True).stdout:
        assert time.monotonic() < deadline, f"{image} is in use still"
        time.sleep(0.02)


def fsck(path: Path, *, clean: bool = True) -> None:
    """e2fsck -fn says that all is well, and the file system was left clean."""
    done = subprocess.run(["e2fsck", "-fn", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    told = subprocess.run(["dumpe2fs", "-h", path], capture_output=True, text=True, check=True).stdout
    assert "needs_recovery" not in told, told
    assert "Filesystem state:         clean" in told or not clean, told


def take_image(
    protected: Protected,
    device: Path,
    *,
    filesystem: str = "ext4",
    consistency: Consistency = "read-only",
    piece: int = PIECE,
) -> str:
    """Commit what `device` holds as a block full: zero units left out, cells packed into small chunks."""
    with protected.repository(write_key=True) as repository:
        tenure = Tenure(repository, VOLUME)
        tenure.begin()
        history = History.load(repository, VOLUME)
        tenure.listed(history)
        head = history.record(history.names[-1]) if history.names else None
        writer = _Writer(protected, repository, tenure)
        size = device.stat().st_size
        image = Image(size, filesystem, "", piece)
        data = device.read_bytes()
        entries = [
            writer.piece(name, data, number * piece, length)
            for number, (name, length) in enumerate(image.pieces())
        ]
        writer.flush()
        recorded = writer.commit(image, entries, consistency, head, history)
        tenure.release()
        return recorded.name.snapshot


class _Writer:
    def __init__(self, protected, repository, tenure) -> None:  # type: ignore[no-untyped-def]
        self._repository = repository
        self._tenure = tenure
        self._keys = repository.volume_keys(VOLUME)
        self._data_key = tenure.data_key()
        self._sealer = Sealer(1)
        self._refs: list[ChunkRef] = []
        self._buffer = bytearray()
        self._known: dict[bytes, int] = {}

    def piece(self, name: bytes, data: bytes, start: int, length: int) -> Entry:
        """The entry of a piece; its cells go into chunks, those that hold data."""
        segments: list[Segment] = []
        content: list[Extent] = []
        for cell in range(start, start + length, CELL):
            end = min(cell + CELL, start + length)
            units = {unit: data[unit : min(unit + UNIT, end)] for unit in range(cell, end, UNIT)}
            units = {unit: held for unit, held in units.items() if held.strip(b"\0")}
            if not units:
                continue
            content.append(self._cell(b"".join(units.values())))
            for unit, size in ((unit, len(held)) for unit, held in units.items()):
                if segments and segments[-1].offset + segments[-1].length == unit - start:
                    segments[-1] = Segment(segments[-1].offset, segments[-1].length + size)
                else:
                    segments.append(Segment(unit - start, size))
        return Entry(
            name, int(Kind.REGULAR), int(Flag.SPARSE), 0o600, size=length, segments=tuple(segments),
            header=self._cell(bytes(512)), content=tuple(content),
        )  # fmt: skip

    def _cell(self, data: bytes) -> Extent:
        if len(self._buffer) + len(data) > CHUNK:
            self.flush()
        extent = Extent(len(self._refs), len(self._buffer), len(data))
        self._buffer += data
        return extent

    def flush(self) -> None:
        """Put the chunk that was begun."""
        if not self._buffer:
            return
        name_hash = chunk_hash(self._keys.chunk_names, self._buffer)
        name = names.chunk_name(VOLUME, name_hash, self._data_key.id)
        context = Context(self._repository.id, VOLUME, name)
        sealed, digest = self._sealer.seal(
            ObjectType.CHUNK, self._data_key.secret, self._data_key.id, context, bytes(self._buffer)
        )
        self._repository.store.put(name, bytes(sealed))
        self._refs.append(ChunkRef(name_hash, self._data_key.id, len(self._buffer), len(sealed), digest))
        self._buffer.clear()

    def commit(self, image, entries, consistency, head, history) -> Recorded:  # type: ignore[no-untyped-def]
        """The catalog and the manifest."""
        root = Entry(b"", int(Kind.DIRECTORY), mode=0o755, header=Extent(0, 0, 512))
        catalog = CatalogBuilder(self._repository, VOLUME, 0)
        catalog.add(Listing(b"", [root, *entries]))
        catalog.finish()
        now_us = time.time_ns() // 1000
        name = ManifestName(
            VOLUME, head.name.sequence + 1 if head else 1, self._tenure.lease.generation, now_us, "full",
            secrets.token_hex(8),
        )  # fmt: skip
        manifest = Manifest(
            repository_id=self._repository.id, name=name, finished_us=now_us,
            parent=ParentRef(head.name.snapshot, head.hash) if head else None,
            program="test", host=os.uname().nodename, source=Source("/volume", ""), consistency=consistency,
            completeness=Completeness("scan", True), statistics=Statistics(1, 1, 1, 1, 1, 0),
            owners=catalog.owners(), chunks=tuple(self._refs[number] for number in catalog.rows),
            catalog=tuple(ref for ref, _ in catalog.segments), image=image,
        )  # fmt: skip
        return commit_manifest(self._repository, self._tenure.lease, manifest, b"")
