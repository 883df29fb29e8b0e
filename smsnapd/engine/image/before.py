"""The image before: what it holds of each cell, so that the next one stores only what changed.

Digests of cells are kept beside the local index. That is a cache: without them, or if the image that they are
of is gone, everything is packed again, and what packs to the same chunks as before is not stored twice.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
from blake3 import blake3

from smsnapd.engine.history import History
from smsnapd.engine.image.cellmap import CellMap, fill
from smsnapd.engine.trees.tree import SnapshotTree
from smsnapd.errors import DamageError
from smsnapd.format.image import PIECE
from smsnapd.model import ChunkRef
from smsnapd.repository import Repository
from smsnapd.repository.manifests import Recorded
from smsnapd.volume.block.cells import DIGEST, NO_DIGEST

_MAGIC: Final = b"smsnapd image 1\n"
_HEAD: Final = 4096
_AT_ONCE: Final = 65536
_FULLS_LOOKED_AT: Final = 16
_DEAD_SHARE: Final = 2
"""A chunk of which less than one part in so many is used by an image is read anew by the next one."""


class Remembered(msgspec.Struct, frozen=True):
    """What digests are of: the image's snapshot, the key that they are made with, the device's size."""

    snapshot: str
    key: bytes
    size: int


class DigestFile:
    """The digests of the newest image, in a file of their own."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def head(self) -> Remembered:
        """What it is of; a new key and no snapshot if there is none, or it is damaged."""
        try:
            with self._path.open("rb") as file:
                raw = file.read(_HEAD)
            start = len(_MAGIC)
            length = int.from_bytes(raw[start : start + 4], "little")
            body = raw[start + 4 : start + 4 + length]
            if raw[:start] == _MAGIC and raw[_HEAD - 32 :] == blake3(raw[: _HEAD - 32]).digest():
                return msgspec.msgpack.decode(body, type=Remembered)
        except (FileNotFoundError, msgspec.DecodeError):
            pass
        return Remembered("", secrets.token_bytes(32), 0)

    def load(self, cells: CellMap) -> None:
        """Set the digests of all cells that it has."""
        with self._path.open("rb") as file:
            file.seek(_HEAD)
            for start in range(0, cells.cells, _AT_ONCE):
                cells.set_digests(start, file.read(min(_AT_ONCE, cells.cells - start) * DIGEST))

    def save(self, remembered: Remembered, cells: CellMap) -> None:
        """Replace it, as a whole or not at all."""
        body = msgspec.msgpack.encode(remembered)
        head = (_MAGIC + len(body).to_bytes(4, "little") + body).ljust(_HEAD - 32, b"\0")
        new = Path(f"{self._path}.new")
        new.unlink(missing_ok=True)
        with open(new, "xb", opener=_private) as file:
            file.write(head + blake3(head).digest())
            for start in range(0, cells.cells, _AT_ONCE):
                digests = cells.digests(start, min(start + _AT_ONCE, cells.cells))
                # What holds nothing takes no room here either.
                if digests.count(0) < len(digests):
                    file.write(digests)
                else:
                    file.seek(len(digests), os.SEEK_CUR)
            file.truncate()
        os.replace(new, self._path)


class Before:
    """An image that may be built upon: its chunks, numbered as its manifest lists them."""

    def __init__(self, repository: Repository, recorded: Recorded) -> None:
        self._tree = SnapshotTree(repository, [recorded])
        self.snapshot: Final = recorded.name.snapshot
        self.chunks: Final[dict[int, ChunkRef]] = dict(enumerate(recorded.manifest.chunks))

    def take_over(self, cells: CellMap, digests: DigestFile | None, data_keys: set[bytes]) -> None:
        """Fill `cells` with what the image holds; a cell that must be stored again gets no digest.

        `digests` are those of this image, None if they are lost; `data_keys` those that exist. DamageError if
        its catalog is not whole.
        """
        image = self._tree.image
        assert image is not None
        taken = fill(cells, image, self._tree.pieces())
        if digests is not None:
            digests.load(cells)
        for cell in taken.left_out:
            cells.set_digests(cell, NO_DIGEST)
        cells.forget_digests(set(self._unusable(taken.used, data_keys)))

    def _unusable(self, used: dict[int, int], data_keys: set[bytes]) -> Iterator[int]:
        for number, live in used.items():
            ref = self.chunks[number]
            if ref.key_id not in data_keys or live * _DEAD_SHARE < ref.length:
                yield number


def find_before(repository: Repository, history: History, snapshot: str) -> Before | None:
    """The image `snapshot`, or the newest one there is; None if there is none that can be built upon."""
    fulls = [name for name in reversed(history.names) if name.kind == "full"][:_FULLS_LOOKED_AT]
    fulls.sort(key=lambda name: name.snapshot != snapshot)
    for name in fulls:
        try:
            recorded = history.record(name)
        except DamageError:
            continue  # `check` tells; an image needs nothing of it
        image = recorded.manifest.image
        if image is not None and image.piece == PIECE:
            return Before(repository, recorded)
    return None


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
