"""An S3 server that discards what it gets, as quickly as the kernel can: what is left is the client's cost.

    python -m tests.bench.discard DIR            # prints its endpoint; serves while its input is open
    python -m tests.bench.discard DIR cert.pem   # the same over TLS, with a key and a certificate in one file

Objects of up to 256 KiB are kept in DIR, so that `smsnap init` and `smsnap backup` find again what they
read; of larger ones the name and the size are. Conditions of puts hold, signatures are not looked at, lists
are of one page. A process for each connection: no interpreter lock is between them. For measuring alone: it
listens on 127.0.0.1.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import socketserver
import ssl
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

KEPT_BYTES = 256 * 1024
_PIECE = 4 * 1024 * 1024
_READ_AHEAD = 32 * 1024


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
    """What was put, by path (`/bucket/key`): a file in `directory` for each. For several processes."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def put(self, path: str, headers: dict[str, str], size: int, content: bytes | None) -> Answer:
        """Keep it if the request's condition holds."""
        with self._alone():
            there = self._read(path)
            must_be = headers.get("if-match")
            if (headers.get("if-none-match") == "*" and there) or (
                must_be and (there is None or there.etag != must_be)
            ):
                return refused("412 Precondition Failed", "PreconditionFailed")
            etag = f'"{os.urandom(16).hex()}"'
            head = f"{size} {etag} {content is not None}\n".encode()
            self._file(path).write_bytes(head + (content or b""))
        return Answer("200 OK", {"ETag": etag})

    def get(self, path: str) -> Answer:
        """A kept one; of one that was discarded nobody gets anything."""
        with self._alone():
            found = self._read(path)
        if found is None or found.content is None:
            return refused("404 Not Found", "NoSuchKey")
        return Answer("200 OK", {"ETag": found.etag}, found.content)

    def delete(self, path: str) -> Answer:
        """Forget it."""
        with self._alone():
            self._file(path).unlink(missing_ok=True)
        return Answer("204 No Content", {})

    def list(self, bucket: str, prefix: str, delimiter: str) -> Answer:
        """All of them in one page, as ListObjectsV2."""
        start = f"{bucket.rstrip('/')}/"
        pieces, groups = [], set()
        with self._alone():
            for path in sorted(unquote(file.name) for file in self._directory.iterdir()):
                key = path.removeprefix(start)
                found = self._read(path)
                if found is None or key == path or not key.startswith(prefix):
                    continue
                group, cut, _ = key[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
                if cut:
                    groups.add(f"{prefix}{group}{delimiter}")
                else:
                    pieces.append(_listed(key, found))
        pieces += [f"<CommonPrefixes><Prefix>{escape(group)}</Prefix></CommonPrefixes>" for group in groups]
        body = f"<ListBucketResult><IsTruncated>false</IsTruncated>{''.join(pieces)}</ListBucketResult>"
        return Answer("200 OK", {"Content-Type": "application/xml"}, body.encode())

    def _read(self, path: str) -> Kept | None:
        try:
            head, _, content = self._file(path).read_bytes().partition(b"\n")
        except FileNotFoundError:
            return None
        size, etag, is_kept = head.decode().split()
        return Kept(int(size), etag, content if is_kept == "True" else None)

    def _file(self, path: str) -> Path:
        return self._directory / quote(path, safe="")

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        descriptor = os.open(self._directory, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _listed(key: str, found: Kept) -> str:
    return (
        f"<Contents><Key>{escape(key)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
        f"<ETag>{found.etag}</ETag><Size>{found.size}</Size></Contents>"
    )


def refused(status: str, code: str) -> Answer:
    """An error as S3 writes it."""
    return Answer(status, {"Content-Type": "application/xml"}, f"<Error><Code>{code}</Code></Error>".encode())


class Connection(socketserver.BaseRequestHandler):
    """One connection: request after request."""

    server: Server

    def handle(self) -> None:
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._unread = b""
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            if self.server.tls is not None:
                self.request = self.server.tls.wrap_socket(self.request, server_side=True)
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
        content: bytes | None = None
        if headers.get("transfer-encoding"):
            size = self._discard_chunks()
        elif size <= KEPT_BYTES:
            content = self._content(size)
        else:
            self._discard(size)
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
        """Have the kernel drop it: with MSG_TRUNC, TCP copies nothing (tcp(7)). What TLS seals is opened."""
        flags = socket.MSG_TRUNC if self.server.tls is None else 0
        left = max(0, size - len(self._unread))
        self._unread = self._unread[size:]
        while left:
            got = self.request.recv_into(self.server.nowhere, min(left, _PIECE), flags)
            left -= got or len(self._lost())

    def _discard_chunks(self) -> int:
        """As the SDK frames what it sums on the way (RFC 9112, section 7.1); how many bytes these were."""
        whole = 0
        while size := int(self._line(), 16):
            whole += size
            self._discard(size)
            self._line()
        while self._line():
            pass
        return whole

    def _line(self) -> bytes:
        while b"\r\n" not in self._unread:
            self._unread += self.request.recv(_READ_AHEAD) or self._lost()
        line, _, self._unread = self._unread.partition(b"\r\n")
        return line

    def _lost(self) -> bytes:
        raise ConnectionResetError

    def _say(self, method: str, answer: Answer) -> None:
        headers = {"Content-Length": str(len(answer.body)), "Date": formatdate(usegmt=True), **answer.headers}
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        body = b"" if method == "HEAD" else answer.body
        self.request.sendall(f"HTTP/1.1 {answer.status}\r\n{head}\r\n".encode() + body)


class Server(socketserver.ForkingTCPServer):
    """On a free port; with a `certificate` over TLS."""

    max_children = 1000
    request_queue_size = 64

    def __init__(self, directory: Path, certificate: Path | None = None) -> None:
        self.objects = Objects(directory)
        self.nowhere = bytearray(_PIECE)
        self.tls: ssl.SSLContext | None = None
        if certificate is not None:
            self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.tls.load_cert_chain(certificate)
        super().__init__(("127.0.0.1", 0), Connection)


def certificate(path: Path) -> Path:
    """A new key and a certificate for 127.0.0.1 that sign themselves, in the file `path`."""
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=bench"
    also = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(path), "-out", f"{path}.part"]
    subprocess.run([*make.split(), *also], check=True, capture_output=True)
    part = Path(f"{path}.part")
    path.write_bytes(path.read_bytes() + part.read_bytes())
    part.unlink()
    return path


@contextlib.contextmanager
def discarding_server(tls: Path | None = None) -> Iterator[str]:
    """Such a server in processes of its own; its endpoint."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        command = [sys.executable, "-m", "tests.bench.discard", directory, *([str(tls)] if tls else [])]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, start_new_session=True
        ) as process:
            try:
                assert process.stdout is not None
                yield process.stdout.readline().decode().strip()
            finally:
                os.killpg(process.pid, signal.SIGKILL)


if __name__ == "__main__":
    with Server(*map(Path, sys.argv[1:])) as server:
        scheme = "http" if server.tls is None else "https"
        print(f"{scheme}://127.0.0.1:{server.server_address[1]}", flush=True)
        # Whoever started it may be killed: then nobody ends it.
        threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
        server.serve_forever()
