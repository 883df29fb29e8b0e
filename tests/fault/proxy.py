"""A TCP proxy between boto3 and a server that does what networks do: resets, losses, flipped bits, silence.

It understands just enough of HTTP/1.1 to tell requests apart, and serves one request a connection. It
runs in a thread of its own; faults are planned from the test's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
import threading
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NamedTuple
from urllib.parse import urlsplit

_PIECE = 64 * 1024


@dataclass(frozen=True)
class ResetRequest:
    """Both connections are reset after `at` bytes of the request's body went on."""

    at: int


@dataclass(frozen=True)
class FlipRequest:
    """One bit of the request's body is flipped, at `at`."""

    at: int


@dataclass(frozen=True)
class LoseResponse:
    """The server does its work and answers; the client's connection is reset instead."""


@dataclass(frozen=True)
class CutResponse:
    """The client's connection is closed after `at` bytes of the answer's body."""

    at: int


@dataclass(frozen=True)
class FlipResponse:
    """One bit of the answer's body is flipped, at `at`."""

    at: int


@dataclass(frozen=True)
class BlackHole:
    """Nothing is ever answered, and the server never hears of it."""


@dataclass(frozen=True)
class Answer:
    """The proxy answers in the server's place, with an S3 error."""

    status: int
    code: str
    message: str = "planned by the test"
    headers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Delay:
    """The request goes on after `seconds`."""

    seconds: float


@dataclass(frozen=True)
class Throttle:
    """The request's body goes on at `bytes_per_s`."""

    bytes_per_s: float


Fault = (
    ResetRequest
    | FlipRequest
    | LoseResponse
    | CutResponse
    | FlipResponse
    | BlackHole
    | Answer
    | Delay
    | Throttle
)


class Request(NamedTuple):
    """A request that came by: method, path with query, headers with lower-case names."""

    method: str
    path: str
    headers: dict[str, str]


class FaultProxy:
    """A proxy before `upstream` (an http:// endpoint), on a free port of 127.0.0.1, as a context manager.

    With `certificate` (a PEM file of key and certificate) its own side speaks TLS. `seen` is every
    request, in order.
    """

    def __init__(self, upstream: str, certificate: Path | None = None) -> None:
        parts = urlsplit(upstream)
        self._upstream = (str(parts.hostname), int(parts.port or 80))
        self._tls: ssl.SSLContext | None = None
        if certificate is not None:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(certificate)
        self.seen: list[Request] = []
        self.endpoint = ""
        self._plans: dict[str, deque[Fault]] = {}
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="fault proxy")

    def plan(self, method: str, *faults: Fault) -> None:
        """The next requests with `method` meet `faults`, one each, in order."""
        self._plans.setdefault(method, deque()).extend(faults)

    def befalls(self, request: Request) -> Fault | None:
        """What a request meets: here the next of what is planned for its method."""
        planned = self._plans.get(request.method)
        return planned.popleft() if planned else None

    def count(self, method: str) -> int:
        """How many requests with `method` came by."""
        return sum(request.method == method for request in self.seen)

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        self._ready.wait(60)
        assert self.endpoint, "the proxy did not start"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(60)
        assert not self._thread.is_alive(), "the proxy did not stop"

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        server = self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._tls)
        scheme = "https" if self._tls else "http"
        self.endpoint = f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._ready.set()
        await self._stop.wait()
        server.close()
        while self._connections:  # one that was being accepted just now may still join
            for task in self._connections:
                task.cancel()
            await asyncio.wait(self._connections)
            await asyncio.sleep(0)
        await server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._stop.is_set():
            writer.transport.abort()
            return
        task = asyncio.create_task(self._connected(reader, writer))
        self._connections[task] = writer
        # A task that is cancelled before its first step runs none of its own `finally`.
        task.add_done_callback(lambda done: self._connections.pop(done).transport.abort())

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._serve(reader, writer)
            await _close(writer)
        except (OSError, asyncio.IncompleteReadError):
            _reset(writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        request = _parse(head)
        self.seen.append(request)
        fault = self.befalls(request)
        if isinstance(fault, Answer):
            await _answer(fault, request, reader, writer)
        elif isinstance(fault, BlackHole):
            while await reader.read(_PIECE):
                pass
        else:
            if isinstance(fault, Delay):
                await asyncio.sleep(fault.seconds)
            await self._relay(fault, request, head, reader, writer)

    async def _relay(
        self,
        fault: Fault | None,
        request: Request,
        head: bytes,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        from_server, to_server = await asyncio.open_connection(*self._upstream)
        sending = None
        try:
            to_server.write(head[:-2] + b"Connection: close\r\n\r\n")
            length = int(request.headers.get("content-length", "0"))
            sending = asyncio.create_task(_send_body(fault, length, reader, to_server))
            answering = asyncio.create_task(_send_answer(fault, from_server, writer))
            await asyncio.wait({sending, answering}, return_when=asyncio.FIRST_EXCEPTION)
            if sending.done() and sending.exception() is not None:
                answering.cancel()
                _reset(to_server)
                _reset(writer)
                await asyncio.gather(answering, return_exceptions=True)
            else:
                await answering
        finally:
            try:
                if sending is not None:
                    sending.cancel()
                    await asyncio.gather(sending, return_exceptions=True)
                await _close(to_server)
            finally:
                # Cancelled in the lines above, too: the loop must not end before the connection does.
                to_server.transport.abort()


def _parse(head: bytes) -> Request:
    first, *lines = head.decode("latin-1").split("\r\n")
    method, path, _ = first.split(" ")
    pairs = (line.partition(":") for line in lines if line)
    return Request(method, path, {name.lower(): value.strip() for name, _, value in pairs})


async def _send_body(
    fault: Fault | None, length: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Hand `length` bytes of body on; raises `ConnectionResetError` where the plan says so."""
    done = 0
    while done < length:
        wanted = min(_PIECE, length - done)
        if isinstance(fault, ResetRequest):
            wanted = min(wanted, fault.at - done)
            if wanted <= 0:
                raise ConnectionResetError("planned")
        piece = await reader.read(wanted)
        if not piece:
            raise ConnectionResetError("the client went away")
        if isinstance(fault, FlipRequest):
            piece = _flip(piece, fault.at - done)
        if isinstance(fault, Throttle):
            await asyncio.sleep(len(piece) / fault.bytes_per_s)
        writer.write(piece)
        await writer.drain()
        done += len(piece)


async def _send_answer(
    fault: Fault | None, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Hand the answer on, 100 Continue before it included."""
    while True:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.split(b" ", 2)[1] != b"100":
            break
        writer.write(head)
    if isinstance(fault, LoseResponse):
        while await reader.read(_PIECE):
            pass
        _reset(writer)
        return
    lines = [line for line in head.split(b"\r\n") if line and not line.lower().startswith(b"connection:")]
    writer.write(b"\r\n".join([*lines, b"Connection: close", b"", b""]))
    done = 0
    while piece := await reader.read(_PIECE):
        if isinstance(fault, FlipResponse):
            piece = _flip(piece, fault.at - done)
        if isinstance(fault, CutResponse) and done + len(piece) > fault.at:
            writer.write(piece[: fault.at - done])
            break
        writer.write(piece)
        await writer.drain()
        done += len(piece)
    await writer.drain()


async def _answer(
    fault: Answer, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    if "expect" not in request.headers:
        await reader.readexactly(int(request.headers.get("content-length", "0")))
    body = f"<Error><Code>{fault.code}</Code><Message>{fault.message}</Message></Error>".encode()
    if request.method == "HEAD":
        body = b""
    head = [f"HTTP/1.1 {fault.status} Planned", f"Content-Length: {len(body)}", "Connection: close"]
    head += ["Content-Type: application/xml", *fault.headers, "", ""]
    writer.write("\r\n".join(head).encode() + body)
    await writer.drain()


def _flip(piece: bytes, at: int) -> bytes:
    if not 0 <= at < len(piece):
        return piece
    return piece[:at] + bytes((piece[at] ^ 1,)) + piece[at + 1 :]


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST, so that the other side sees a reset and not an end."""
    raw = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError, ssl.SSLError):
        await writer.wait_closed()
