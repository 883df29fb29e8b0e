"""The body of an answer to GetObject: read whole, at a pace if there is one, and its length compared."""

from __future__ import annotations

import contextlib
from typing import Any

from smsnapd.errors import StoreError
from smsnapd.store.base import check_size
from smsnapd.store.pacing import Pacer


def read_answer(response: Any, what: str, pacer: Pacer | None) -> bytes:
    """The object of the SDK's `response`; `what` is being done. The SDK compares the checksum at the end.

    Raises the SDK's exceptions, `DamageError` if the object is too large, `StoreError` if it is cut short.
    """
    with contextlib.closing(response["Body"]) as body:
        check_size(response.get("ContentLength", 0), what)
        content: bytes = body.read() if pacer is None else _paced(body, pacer)
    if len(content) != response.get("ContentLength", len(content)):
        raise StoreError(what, "the answer was cut short", transient=True)
    return content


def _paced(body: Any, pacer: Pacer) -> bytes:
    """What is not read yet waits in the server: the connection's window fills up."""
    content = bytearray()
    while piece := body.read(pacer.piece):
        pacer.wait(len(piece))
        content += piece
    return bytes(content)
