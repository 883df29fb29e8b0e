"""An object's bytes on their way into a file, or out of it."""

from __future__ import annotations

import io
import os
from typing import Final

from smsnapd.store.activity import uploading
from smsnapd.store.pacing import Pacer
from smsnapd.store.syncfs import start_writing_back

_AT_ONCE: Final = 1024 * 1024


def write_all(descriptor: int, data: memoryview, pacer: Pacer | None) -> None:
    """Write `data` (of bytes) to the file, which must be new; at the pace if there is one. Raises `OSError`.

    Paced bytes are sent to the disk, or to the server that it is, as they come: else they would wait in
    memory, and all go out at once when the file is closed.
    """
    if pacer is None:
        for start in range(0, len(data), _AT_ONCE):
            _write(descriptor, data[start : start + _AT_ONCE])
        return
    position = 0
    for piece in pacer.pieces(data):
        _write(descriptor, piece)
        start_writing_back(descriptor, position, len(piece))
        position += len(piece)


def read_all(file: io.FileIO, pacer: Pacer | None) -> bytes:
    """The rest of the file; at the pace if there is one. Raises `OSError`."""
    if pacer is None:
        return file.read()
    content = bytearray()
    while piece := file.read(pacer.piece):
        pacer.wait(len(piece))
        content += piece
    return bytes(content)


def _write(descriptor: int, data: memoryview) -> None:
    position = 0
    while position < len(data):
        position += os.write(descriptor, data[position:])
    uploading.mark()
