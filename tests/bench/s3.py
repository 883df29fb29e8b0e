"""To S3: beside `aws s3 sync` on one real server, and beside boto3 on one that discards what it gets."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from tests.bench.discard import certificate, discarding_server
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

    Of each the best of some runs, in turn; over TLS, as S3 is reached, and without it.
    """
    volume = place / "noise"
    size = _noise(volume, mib)
    read_once(volume)
    found: dict[str, Taken] = {}
    try:
        pem = certificate(place / "noise.pem")
        for tls, suffix in ((pem, ""), (None, ", without TLS")):
            for _ in range(times):
                for name, taken in _against_nothing(place, volume, size >> 20, smsnap, tls).items():
                    print(f"noise to S3{suffix}: {name}: {taken.wall_s:.2f} s", file=sys.stderr)
                    least = min(taken, found.get(name + suffix, taken), key=lambda one: one.wall_s)
                    found[name + suffix] = least
        pem.unlink()
    finally:
        shutil.rmtree(volume)
    return size, found


def _noise(volume: Path, mib: int) -> int:
    """Large files that nothing makes smaller; bytes in all."""
    shutil.rmtree(volume, ignore_errors=True)
    volume.mkdir()
    files = max(1, mib // _FILE_MIB)
    for number in range(files):
        with (volume / f"{number}.bin").open("wb") as file:
            for _ in range(mib // files):
                file.write(os.urandom(1 << 20))
    return (mib // files * files) << 20


def _against_nothing(
    place: Path, volume: Path, mib: int, smsnap: Path | None, tls: Path | None
) -> dict[str, Taken]:
    home = place / "noise-home"
    shutil.rmtree(home, ignore_errors=True)
    try:
        with discarding_server(tls) as endpoint:
            peer = smsnapd(smsnap, endpoint)
            environment = {**prepared(peer, home, volume), **KEYS}
            if tls is not None:
                environment["AWS_CA_BUNDLE"] = str(tls)
            measure(peer.prepare, environment, place)
            put = f'"{sys.executable}" -m tests.bench.ceiling --endpoint {endpoint} --mib {mib}'
            full = measure(peer.full, environment, place)
            return {"smsnapd": full, "boto3": measure(put, environment, Path.cwd())}
    finally:
        shutil.rmtree(home, ignore_errors=True)
