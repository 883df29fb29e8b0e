"""How long after a file is closed its recovery point is there, whatever the size of the tree.

    python -m tests.bench.latency --directories 30000 --files 10 --edits 30

prints one JSON object: milliseconds beyond `[schedule] quiet` (median, worst), of a real daemon on a
directory repository, and what the daemon had in memory at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from pathlib import Path

from tests.e2e.daemon import Daemon
from tests.e2e.transcript import Notebook

QUIET_S = 1.0
SCHEDULE = '[schedule]\nquiet = "1s"\nincremental = "5m"\nfull = ""\ncheck = ""\nprune = ""\n'


def plant(root: Path, directories: int, files: int) -> list[Path]:
    """A tree three levels deep of so many directories with so many small files each."""
    chance = random.Random(1)
    made = [root / f"a{number % 30}" / f"b{number % 1000}" / f"c{number}" for number in range(directories)]
    for directory in made:
        directory.mkdir(parents=True)
        for number in range(files):
            (directory / f"f{number}").write_bytes(chance.randbytes(chance.randrange(50, 1500)))
    return made


def delays_s(manifests: Path, places: list[Path], edits: int) -> list[float]:
    """Of each of some edits, the seconds from the close to its manifest, beyond the quiet time."""
    found = []
    for number in range(edits):
        before = set(os.listdir(manifests))
        with (places[number * 7 % len(places)] / "f0").open("ab") as file:
            file.write(b"more")
        closed_s = time.monotonic()
        while set(os.listdir(manifests)) == before:
            time.sleep(0.002)
        found.append(time.monotonic() - closed_s - QUIET_S)
    return found


def measure(place: Path, directories: int, files: int, edits: int) -> dict[str, object]:
    """Plant a tree in `place`, protect it with a daemon, edit it."""
    notebook = Notebook(place, more=SCHEDULE)
    places = plant(notebook.volume, directories, files)
    notebook.well("init")
    daemon = Daemon(notebook)
    try:
        daemon.start()
        daemon.until("idle")
        delays = delays_s(next(place.glob("**/manifests")), places, edits)
        assert daemon.process is not None
        memory = Path(f"/proc/{daemon.process.pid}/status").read_text()
        kib = int(memory.partition("VmRSS:")[2].split()[0])
        daemon.end()
    finally:
        daemon.close()
    return {
        "files": directories * files,
        "directories": directories,
        "median_ms": round(statistics.median(delays) * 1e3, 1),
        "worst_ms": round(max(delays) * 1e3, 1),
        "daemon_mib": kib // 1024,
    }


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--directories", type=int, default=30_000)
    parser.add_argument("--files", type=int, default=10, help="in each directory")
    parser.add_argument("--edits", type=int, default=30)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        print(json.dumps(measure(Path(place), given.directories, given.files, given.edits)))


if __name__ == "__main__":
    main()
