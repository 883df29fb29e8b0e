"""To S3: beside `aws s3 sync` on one real server, and beside boto3 on one that discards what it gets."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from tests.bench.discard import discarding_server
from tests.bench.findings import Results
from tests.bench.meter import Taken, measure
from tests.bench.peers import BUCKET, KEYS, aws_sync, prepared, smsnapd
from tests.bench.steps import WITHOUT_CHANGES, read_once, run
from tests.servers import seaweedfs

_FILE_MIB = 128


def beside_sync(place: Path, volume: Path, smsnap: Path | None) -> Results:
    """The same volume by both through SeaweedFS, whose own processor time counts for neither."""
    home = place / "seaweedfs"
    shutil.rmtree(home, ignore_errors=True)
    try:
        with seaweedfs(home) as server:
            server.make_bucket(BUCKET)
            peers = [smsnapd(smsnap, server.endpoint), aws_sync(server.endpoint)]
            return run(peers, place, volume, WITHOUT_CHANGES)[0]
    finally:
        shutil.rmtree(home, ignore_errors=True)


def ceiling(place: Path, mib: int, smsnap: Path | None, times: int = 2) -> tuple[int, dict[str, Taken]]:
    """So many MiB of noise in large files: a full, and boto3 putting as much; bytes, and what each took.

    Of each the best of some runs, in turn.
    """
    volume, home = place / "noise", place / "noise-home"
    shutil.rmtree(volume, ignore_errors=True)
    volume.mkdir()
    files = max(1, mib // _FILE_MIB)
    for number in range(files):
        with (volume / f"{number}.bin").open("wb") as file:
            for _ in range(mib // files):
                file.write(os.urandom(1 << 20))
    read_once(volume)
    found: dict[str, Taken] = {}
    try:
        for _ in range(times):
            with discarding_server() as endpoint:
                shutil.rmtree(home, ignore_errors=True)
                peer = smsnapd(smsnap, endpoint)
                environment = prepared(peer, home, volume)
                measure(peer.prepare, environment, place)
                put = f'"{sys.executable}" -m tests.bench.ceiling --endpoint {endpoint} --mib {mib}'
                for name, command in (("smsnapd", peer.full), ("boto3", put)):
                    at = Path.cwd() if name == "boto3" else place
                    taken = measure(command, {**environment, **KEYS}, at)
                    found[name] = min(taken, found.get(name, taken), key=lambda one: one.wall_s)
                    print(f"noise to S3: {name}: {taken.wall_s:.2f} s", file=sys.stderr)
    finally:
        shutil.rmtree(volume)
        shutil.rmtree(home, ignore_errors=True)
    return (mib // files * files) << 20, found
