"""What this process asks of S3: requests by kind, repeated ones too, and the bytes of their bodies.

>>> tally = Tally()
>>> tally.sent("put", 512)
>>> tally.total()
Requests(put=1, get=0, list=0, head=0, delete=0, bytes_up=512, bytes_down=0)
"""

from __future__ import annotations

import operator
import threading
from typing import Any, Final, Literal

import msgspec

Kind = Literal["put", "get", "list", "head", "delete"]


class Requests(msgspec.Struct, frozen=True):
    """How many requests were made, of each kind, and how many bytes their bodies and their answers' had.

    What is counted is what a provider bills: every attempt, whatever came of it, with its body as it was
    announced, even if it was cut off. `put` is everything that writes. Numbers of directories are 0.
    """

    put: int = 0
    get: int = 0
    list: int = 0
    head: int = 0
    delete: int = 0
    bytes_up: int = 0
    bytes_down: int = 0

    def __add__(self, other: Requests) -> Requests:
        return Requests(*map(operator.add, msgspec.structs.astuple(self), msgspec.structs.astuple(other)))

    def __sub__(self, other: Requests) -> Requests:
        return Requests(*map(operator.sub, msgspec.structs.astuple(self), msgspec.structs.astuple(other)))


class Tally:
    """A running total. For several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._total = Requests()

    def total(self) -> Requests:
        """What was counted so far."""
        return self._total

    def add(self, requests: Requests) -> None:
        """Take in what another process has counted."""
        with self._lock:
            self._total += requests

    def sent(self, kind: Kind, bytes_up: int) -> None:
        """Count a request, with the bytes of its body."""
        self.add(Requests(**{kind: 1}, bytes_up=bytes_up))

    def received(self, bytes_down: int) -> None:
        """Count an answer's body."""
        self.add(Requests(bytes_down=bytes_down))


made: Final = Tally()
"""By all stores of this process, and by those of the worker processes that it has heard from."""


def count_requests(client: Any, tally: Tally = made) -> None:
    """Have an S3 client of the SDK count what it sends and gets, every attempt and redirection."""

    def sent(request: Any, event_name: str, **_: object) -> None:
        tally.sent(kind_of(event_name.rpartition(".")[2]), int(request.headers.get("Content-Length") or 0))

    def received(response_dict: Any, event_name: str, **_: object) -> None:
        if response_dict is not None and not event_name.rpartition(".")[2].startswith("Head"):
            tally.received(_body_bytes(response_dict))

    client.meta.events.register("before-send.s3", sent)
    client.meta.events.register("response-received.s3", received)


def kind_of(operation: str) -> Kind:
    """The kind that an operation of the S3 API is billed as."""
    kinds: dict[str, Kind] = {
        "Get": "get",
        "Head": "head",
        "List": "list",
        "Delete": "delete",
        "Abort": "delete",
    }
    return next((kind for begin, kind in kinds.items() if operation.startswith(begin)), "put")


def _body_bytes(answer: Any) -> int:
    """Of an object that is still to be read, as announced; of everything else, as it came."""
    body = answer.get("body")
    return len(body) if isinstance(body, bytes) else int(answer["headers"].get("content-length") or 0)
