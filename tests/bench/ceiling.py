"""What boto3 can put at best: objects of 8 MiB of noise, from some processes with some threads each.

    python -m tests.bench.ceiling --endpoint http://127.0.0.1:PORT --mib 2048

The SDK's own defaults, the body as bytes; nothing is read, compressed or sealed.
"""

from __future__ import annotations

import argparse
import os
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context

from tests.bench.peers import BUCKET
from tests.servers import S3Server

OBJECT_MIB = 8


def put_some(endpoint: str, names: list[str], threads: int) -> None:
    """Put one body under each of these names."""
    body = os.urandom(OBJECT_MIB << 20)
    client = S3Server(endpoint, 0).client()
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(client.put_object, Bucket=BUCKET, Key=name, Body=body) for name in names]:
            done.result()


def main() -> None:
    """Put so many MiB in all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--mib", type=int, required=True)
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--threads", type=int, default=4)
    given = parser.parse_args()
    names = [f"ceiling/{os.getpid()}/{number}" for number in range(max(1, given.mib // OBJECT_MIB))]
    with get_context("fork").Pool(given.processes) as pool:
        shares = [names[number :: given.processes] for number in range(given.processes)]
        pool.starmap(put_some, [(given.endpoint, share, given.threads) for share in shares])


if __name__ == "__main__":
    main()
