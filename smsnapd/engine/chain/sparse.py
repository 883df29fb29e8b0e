"""Chunks that a prune found mostly dead or small, and could not write anew: the next full leaves them.

Remembered on the machine that pruned, beside its index; losing it costs nothing but the bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

from smsnapd.model import ChunkRef

ChunkKey = tuple[bytes, bytes]
"""A chunk: the hash in its name, and the id of its data key."""


def _path(directory: Path, repository_id: str, volume: str) -> Path:
    return directory / f"{repository_id[:16]}-{volume}.sparse"


def remember_sparse(directory: Path, repository_id: str, volume: str, keys: Iterable[ChunkKey]) -> None:
    """These are the ones now; what was remembered before is forgotten."""
    path = _path(directory, repository_id, volume)
    new = path.with_name(path.name + ".new")
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(msgspec.msgpack.encode(sorted(keys)))
    os.replace(new, path)


def sparse_among(
    directory: Path, repository_id: str, volume: str, chunks: dict[int, ChunkRef]
) -> frozenset[int]:
    """The numbers of those of `chunks` that are remembered; none if what was remembered cannot be read."""
    try:
        data = _path(directory, repository_id, volume).read_bytes()
        keys = set(msgspec.msgpack.decode(data, type=list[ChunkKey]))
    except (FileNotFoundError, msgspec.DecodeError):
        return frozenset()
    return frozenset(number for number, ref in chunks.items() if (ref.name_hash, ref.key_id) in keys)


def forget_sparse(directory: Path, repository_id: str, volume: str) -> None:
    """A full has left them."""
    _path(directory, repository_id, volume).unlink(missing_ok=True)
