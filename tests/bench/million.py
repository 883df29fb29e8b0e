"""Very many files, at two sizes: what grows with their number, and that nothing grows faster.

    python -m tests.bench.million --place /var/tmp/bench                  # 100,000 and 1,000,000
    python -m tests.bench.million --place /var/tmp/bench --files 20000    # 2,000 and 20,000

Of each size: the full, the unchanged run, one that has lost its index, the plan of a restore (--dry-run), and
by the daemon one file's delta (from its close to its recovery point, less `quiet`) and what it has in memory
at rest. "index beyond the scan" is what a run takes longer without its index, the repository's catalog read
and verified included; "compare" is what an unchanged run takes longer, its start included, than `find` does
to look at every file.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import time
from pathlib import Path

from tests.bench import corpus, machine
from tests.bench.findings import Findings
from tests.bench.meter import Taken, measure, memory_mib
from tests.bench.moments import protected
from tests.bench.peers import prepared, smsnapd
from tests.bench.report import markdown


def measured(place: Path, files: int, smsnap: Path | None = None) -> dict[str, dict[str, float]]:
    """Of a tenth of so many files and of all of them what `one_size` finds."""
    return {str(count): one_size(place, count, smsnap) for count in (max(1, files // 10), files)}


def one_size(place: Path, files: int, smsnap: Path | None = None, edits: int = 5) -> dict[str, float]:
    """Seconds, MiB and bytes by what took them; the delta is the median of some edits."""
    volume, home = place / "many", place / "many-home"
    for made in (volume, home):
        shutil.rmtree(made, ignore_errors=True)
    volume.mkdir(parents=True)
    corpus.tiny_files(volume, files)
    peer = smsnapd(smsnap)
    environment = {**prepared(peer, home, volume), "T": str(place / "nowhere")}
    measure(peer.prepare, environment, place)
    found: dict[str, float] = {}

    def take(name: str, command: str) -> Taken:
        taken = measure(command, environment, place)
        print(f"{files} files: {name}: {taken.wall_s:.2f} s", file=sys.stderr)
        return taken

    def keep(name: str, taken: Taken) -> Taken:
        found[f"{name}, s"] = taken.wall_s
        found[f"{name}: processor, s"] = taken.cpu_s
        found[f"{name}: peak, MiB"] = taken.peak_mib
        return taken

    keep("full", take("full", peer.full))
    catalogs = (home / "repo").glob("volumes/*/catalogs/*")
    found["catalog, bytes"] = sum(path.stat().st_size for path in catalogs)
    take("settling", peer.again)
    looked = take("find", 'find "$V" -printf "%s %C@\\n" > /dev/null')
    unchanged = keep("unchanged run", take("unchanged", peer.again))
    found["compare, s"] = max(0.0, unchanged.wall_s - looked.wall_s)
    shutil.rmtree(home / "state")
    lost = take("without its index", peer.again)
    found["index beyond the scan, s"] = max(0.0, lost.wall_s - unchanged.wall_s)
    found["index beyond the scan: peak, MiB"] = lost.peak_mib
    keep("restore plan", take("restore plan", peer.restore.replace(" restore ", " restore --dry-run ")))
    found |= _by_daemon(home, volume, smsnap, edits)
    for made in (volume, home):
        shutil.rmtree(made)
    return found


def _by_daemon(home: Path, volume: Path, smsnap: Path | None, edits: int) -> dict[str, float]:
    edited = next(volume.rglob("*.json"))
    with protected(home, smsnap) as daemon:
        time.sleep(3)
        at_rest_mib = memory_mib(daemon.process.pid)
        delays = [daemon.delay_s(lambda: edited.write_bytes(os.urandom(99))) for _ in range(edits + 1)]
        return {
            "one file's delta by event, s": statistics.median(delays[1:]),  # the first brings a data key
            "daemon at rest, MiB": max(at_rest_mib, memory_mib(daemon.process.pid)),
        }


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--place", type=Path, required=True, help="a directory; a million files need 10 GB")
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--smsnap", type=Path, help="the program (default: this Python's)")
    given = parser.parse_args()
    given.place.mkdir(parents=True, exist_ok=True)
    found = Findings(million=measured(given.place, given.files, given.smsnap))
    found.machine, found.programs = machine.describe(given.place), machine.versions()
    print(markdown(found))


if __name__ == "__main__":
    main()
