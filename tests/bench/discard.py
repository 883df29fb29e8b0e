"""An S3 server that discards what it gets, as quickly as the kernel can: what is left is the client's cost.

    python -m tests.bench.discard      # prints its endpoint; serves until it is killed

Objects of up to 256 KiB are kept in memory, so that `smsnap init` and `smsnap backup` find again what they
read; of larger ones the name and the size are. Conditions of puts hold, signatures are not looked at, lists
are of one page. For measuring alone: it listens on 127.0.0.1.
"""

from __future__ import annotations

import contextlib
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from email.utils import formatdate
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

KEPT_BYTES = 256 * 1024
_PIECE = 4 * 1024 * 1024


class Kept(NamedTuple):
    """An object: its content is None if it was discarded."""

    size: int
    etag: str
    content: bytes | None


class Answer(NamedTuple):
    """What goes back to the client."""

    status: str
    headers: dict[str, str]
    body: bytes = b""


class Objects:
    """What was put, by path (`/bucket/key`). For several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._objects: dict[str, Kept] = {}
        self._numbers = 0

    def put(self, path: str, headers: dict[str, str], size: int, content: bytes | None) -> Answer:
        """Keep it if the request's condition holds."""
        with self._lock:
            there = self._objects.get(path)
            must_be = headers.get("if-match")
            if (headers.get("if-none-match") == "*" and there) or (
                must_be and (there is None or there.etag != must_be)
            ):
                return refused("412 Precondition Failed", "PreconditionFailed")
            self._numbers += 1
            etag = f'"{self._numbers:032x}"'
            self._objects[path] = Kept(size, etag, content)
        return Answer("200 OK", {"ETag": etag})

    def get(self, path: str) -> Answer:
        """A kept one; of one that was discarded nobody gets anything."""
        found = self._objects.get(path)
        if found is None or found.content is None:
            return refused("404 Not Found", "NoSuchKey")
        return Answer("200 OK", {"ETag": found.etag}, found.content)

    def delete(self, path: str) -> Answer:
        """Forget it."""
        with self._lock:
            self._objects.pop(path, None)
        return Answer("204 No Content", {})

    def list(self, bucket: str, prefix: str, delimiter: str) -> Answer:
        """All of them in one page, as ListObjectsV2."""
        start = f"{bucket.rstrip('/')}/"
        with self._lock:
            found = sorted((path[len(start) :], kept) for path, kept in self._objects.items())
        pieces, groups = [], set()
        for key, kept in found:
            if not key.startswith(prefix):
                continue
            group, cut, _ = key[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
            if cut:
                groups.add(f"{prefix}{group}{delimiter}")
                continue
            pieces.append(
                f"<Contents><Key>{escape(key)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
                f"<ETag>{kept.etag}</ETag><Size>{kept.size}</Size></Contents>"
            )
        pieces += [f"<CommonPrefixes><Prefix>{escape(group)}</Prefix></CommonPrefixes>" for group in groups]
        body = f"<ListBucketResult><IsTruncated>false</IsTruncated>{''.join(pieces)}</ListBucketResult>"
        return Answer("200 OK", {"Content-Type": "application/xml"}, body.encode())


def refused(status: str, code: str) -> Answer:
    """An error as S3 writes it."""
    return Answer(status, {"Content-Type": "application/xml"}, f"<Error><Code>{code}</Code></Error>".encode())


class Connection(socketserver.BaseRequestHandler):
    """One connection: request after request."""

    server: Server

    def handle(self) -> None:
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._unread = b""
        with contextlib.suppress(ConnectionError):
            while self._one():
                pass

    def _one(self) -> bool:
        head = self._head()
        if not head:
            return False
        first, *lines = head.decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ", 2)
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        size = int(headers.get("content-length") or 0)
        if headers.get("expect"):
            self.request.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        content = self._content(size) if size <= KEPT_BYTES else self._discard(size)
        self._say(method, self._answer(method, target, headers, size, content))
        return True

    def _answer(
        self, method: str, target: str, headers: dict[str, str], size: int, content: bytes | None
    ) -> Answer:
        parts = urlsplit(target)
        path, asked = unquote(parts.path), parse_qs(parts.query)
        if method == "PUT":
            return self.server.objects.put(path, headers, size, content)
        if method == "DELETE":
            return self.server.objects.delete(path)
        if "list-type" in asked:
            return self.server.objects.list(
                path, *(asked.get(name, [""])[0] for name in ("prefix", "delimiter"))
            )
        return self.server.objects.get(path)

    def _head(self) -> bytes:
        while b"\r\n\r\n" not in self._unread:
            more = self.request.recv(65536)
            if not more:
                return b""
            self._unread += more
        head, _, self._unread = self._unread.partition(b"\r\n\r\n")
        return head

    def _content(self, size: int) -> bytes:
        while len(self._unread) < size:
            self._unread += self.request.recv(size) or self._lost()
        content, self._unread = self._unread[:size], self._unread[size:]
        return content

    def _discard(self, size: int) -> None:
        """Have the kernel drop it: with MSG_TRUNC, TCP copies nothing (tcp(7))."""
        left = size - len(self._unread)
        self._unread = b""
        while left:
            left -= self.request.recv_into(self.server.nowhere, min(left, _PIECE), socket.MSG_TRUNC) or len(
                self._lost()
            )

    def _lost(self) -> bytes:
        raise ConnectionResetError

    def _say(self, method: str, answer: Answer) -> None:
        headers = {"Content-Length": str(len(answer.body)), "Date": formatdate(usegmt=True), **answer.headers}
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        body = b"" if method == "HEAD" else answer.body
        self.request.sendall(f"HTTP/1.1 {answer.status}\r\n{head}\r\n".encode() + body)


class Server(socketserver.ThreadingTCPServer):
    """On a free port, a thread for each connection."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        self.objects = Objects()
        self.nowhere = bytearray(_PIECE)
        super().__init__(("127.0.0.1", 0), Connection)


@contextlib.contextmanager
def discarding_server() -> Iterator[str]:
    """Such a server as a process of its own; its endpoint."""
    command = [sys.executable, "-m", "tests.bench.discard"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().decode().strip()
        finally:
            process.kill()


if __name__ == "__main__":
    with Server() as server:
        print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
        server.serve_forever()
