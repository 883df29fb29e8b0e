"""What S3 is asked for, beside `aws s3 sync` for the same work: requests by kind and bytes on the wire.

    python -m tests.bench.requests --files 100000

prints a table in Markdown. Both tools go through one proxy, which counts what passes, to SeaweedFS: nothing
is taken from what they say of themselves. Files have 100 to 8,000 incompressible bytes.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tests.e2e.daemon import Daemon, eventually
from tests.e2e.transcript import Notebook
from tests.fault.proxy import FaultProxy, Request
from tests.servers import ACCESS_KEY, SECRET_KEY, seaweedfs

KEYS = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
SCHEDULE = '[schedule]\nquiet = "1h"\nincremental = "2h"\nfull = ""\ncheck = ""\nprune = ""\n'
FILES_OF_A_DIRECTORY = 20


class Asked(NamedTuple):
    """What one piece of work asked for."""

    work: str
    tool: str
    put: int
    get: int
    list: int
    other: int
    bytes_up: int
    bytes_down: int

    def row(self) -> str:
        counts = " | ".join(f"{number:,}" for number in (self.put, self.get, self.list, self.other))
        return f"| {self.work} | {self.tool} | {counts} | {size(self.bytes_up)} | {size(self.bytes_down)} |"


def size(count: int) -> str:
    """Bytes as a person reads them in a table."""
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} kB"


class Meter(FaultProxy):
    """A proxy that befalls nobody: it counts requests and bytes, heads included."""

    def __init__(self, upstream: str) -> None:
        super().__init__(upstream)
        self.kinds: Counter[str] = Counter()
        self.bytes_up = self.bytes_down = 0

    def befalls(self, request: Request) -> None:
        self.seen.clear()
        is_list = request.method == "GET" and "list-type=2" in request.path
        self.kinds["LIST" if is_list else request.method] += 1

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        counted: Any = (_Reader(self, reader), _Writer(self, writer))
        await super()._connected(*counted)

    def take(self, work: str, tool: str) -> Asked:
        """What passed since the last time."""
        kinds, up, down = self.kinds, self.bytes_up, self.bytes_down
        self.kinds, self.bytes_up, self.bytes_down = Counter(), 0, 0
        other = kinds.total() - kinds["PUT"] - kinds["GET"] - kinds["LIST"]
        return Asked(work, tool, kinds["PUT"], kinds["GET"], kinds["LIST"], other, up, down)


class _Reader:
    def __init__(self, meter: Meter, reader: asyncio.StreamReader) -> None:
        self._meter = meter
        self._reader = reader

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._reader, name)

        async def counted(*arguments: Any) -> bytes:
            data: bytes = await method(*arguments)
            self._meter.bytes_up += len(data)
            return data

        return counted


class _Writer:
    def __init__(self, meter: Meter, writer: asyncio.StreamWriter) -> None:
        self._meter = meter
        self._writer = writer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)

    def write(self, data: bytes) -> None:
        self._meter.bytes_down += len(data)
        self._writer.write(data)


def plant(root: Path, files: int) -> Path:
    """Small files, some in each directory; returns one of them."""
    chance = random.Random(1)
    for number in range(files):
        place = root / f"directory-{number // FILES_OF_A_DIRECTORY}" / f"file-{number}"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(chance.randbytes(chance.randrange(100, 8000)))
    return place


class Bench:
    """One volume, two tools."""

    def __init__(self, place: Path, meter: Meter, files: int) -> None:
        self.place = place
        self._meter = meter
        self.found: list[Asked] = []
        more = f'region = "us-east-1"\nendpoint_url = "{meter.endpoint}"\npath_style = true\n'
        self.notebook = Notebook(place / "notebook", "s3://bench/smsnap", more + SCHEDULE)
        self._edited = plant(self.notebook.volume, files)

    def measure(self, work: str, tool: str, do: Callable[[], object]) -> None:
        """Do it, and note what passed."""
        self._meter.take("", "")
        do()
        self.found.append(self._meter.take(work, tool))
        print(self.found[-1].row(), file=sys.stderr)

    def edit(self) -> None:
        """Change one file."""
        self._edited.write_bytes(os.urandom(3000))

    def smsnap(self) -> None:
        """The work of `smsnap`, as single runs, and a delta as the daemon makes it."""

        def say(*arguments: str) -> None:
            self.notebook.well(*arguments, **KEYS)

        say("init")
        self.measure("full", "smsnap", lambda: say("backup"))
        say("backup")  # what was written within the tick of the full is looked at again
        self.measure("unchanged", "smsnap", lambda: say("backup"))
        self.edit()
        self.measure("one file changed", "smsnap", lambda: say("backup"))
        with self._daemon() as daemon:
            self.edit()
            self._through(daemon)  # the first delta of a day brings a data key
            eventually(lambda: daemon.status()["repository"]["counted"], "the daily count of what is stored")
            self.measure("unchanged", "smsnapd", lambda: self._through(daemon))
            self.edit()
            self.measure("one file changed", "smsnapd", lambda: self._through(daemon))
        self.measure("restore", "smsnap", lambda: say("restore", "--target", str(self.place / "smsnap")))

    def _through(self, daemon: Daemon) -> None:
        daemon.notebook.well("backup", RUNTIME_DIRECTORY=str(daemon.run))

    @contextmanager
    def _daemon(self) -> Iterator[Daemon]:
        daemon = Daemon(self.notebook)
        daemon.environment = dict(KEYS)
        try:
            daemon.start()
            daemon.until("idle")
            yield daemon
            daemon.end()
        finally:
            daemon.close()

    def aws(self) -> None:
        """The work of `aws s3 sync`."""
        volume, there = str(self.notebook.volume), "s3://bench/aws"
        for work in ("full", "unchanged"):
            self.measure(work, "aws s3 sync", lambda: self._sync(volume, there))
        self.edit()
        self.measure("one file changed", "aws s3 sync", lambda: self._sync(volume, there))
        self.measure("restore", "aws s3 sync", lambda: self._sync(there, str(self.place / "aws")))

    def _sync(self, source: str, target: str) -> None:
        aws = Path(sys.executable).parent / "aws"
        command = [sys.executable, str(aws), "--endpoint-url", self._meter.endpoint, "s3", "sync"]
        environment = {**KEYS, "PATH": os.environ["PATH"], "HOME": str(self.place)}
        environment |= {"AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}
        subprocess.run([*command, "--only-show-errors", source, target], env=environment, check=True)


def measure(place: Path, files: int) -> list[Asked]:
    """All of it, in a directory with room for the volume five times; what each work asked for."""
    with ExitStack() as stack:
        server = stack.enter_context(seaweedfs(place / "server"))
        server.make_bucket("bench")
        bench = Bench(place, stack.enter_context(Meter(server.endpoint)), files)
        for name, work in (("smsnap", bench.smsnap), ("aws", bench.aws)):
            work()
            subprocess.run(["diff", "-r", bench.notebook.volume, place / name], check=True)
    return bench.found


def table(found: list[Asked]) -> str:
    """In Markdown, what was asked for the same work side by side."""
    works = list(dict.fromkeys(asked.work for asked in found))
    rows = [asked.row() for asked in sorted(found, key=lambda asked: works.index(asked.work))]
    head = "| work | by | PUT | GET | LIST | other | up | down |"
    return "\n".join([head, "|---|---|--:|--:|--:|--:|--:|--:|", *rows])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--dir", default="/var/tmp", help="where there is room")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.dir) as directory:
        print(table(measure(Path(directory), asked.files)))
