"""An object's bytes on their way into a file, or out of it."""

from __future__ import annotations

import io

from smsnapd.disk import start_writing_back, write_at
from smsnapd.store.activity import uploading
from smsnapd.store.pacing import Pacer


def write_all(descriptor: int, data: memoryview, pacer: Pacer | None) -> None:
    """Write `data` (of bytes) to the file, which must be new; at the pace if there is one. Raises `OSError`.

    Paced bytes are sent to the disk, or to the server that it is, as they come: else they would wait in
    memory, and all go out at once when the file is closed.
    """
    if pacer is None:
        write_at(descriptor, data, 0, uploading.mark)
        return
    position = 0
    for piece in pacer.pieces(data):
        write_at(descriptor, piece, position, uploading.mark)
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
