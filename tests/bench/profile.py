"""Where the processor's time goes in a full, an unchanged run and a restore, against the floor.

    python -m tests.bench.profile --place /var/tmp/bench                   # a volume made anew
    python -m tests.bench.profile --place /var/tmp/bench --volume DIR      # one that is there, only read

prints Markdown: of each phase the seconds by what they were spent on, as perf(1) samples all of its
processes; and the floor (see `tests.bench.floor`). Without perf the seconds alone are told. Restores go to a
file system of their own, as root.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.bench import corpus, machine
from tests.bench.floor import floors
from tests.bench.meter import Taken, measure
from tests.bench.peers import prepared, smsnapd
from tests.bench.steps import fresh_target, names_and_mib, read_once

LEVEL = 1
"""smsnapd's own, unless configured."""

_PARTS = (
    ("zstd", r"backend_c|zstd", r""),
    ("hashing", r"blake3|libcrypto|_hashlib|libz\.", r""),
    ("sealing; the passphrase (Argon2id)", r"_rust\.abi3", r""),
    ("index (SQLite)", r"sqlite", r""),
    ("kernel: copying, zeroing", r"kernel", r"copy|clear_page|memset|memcpy|movs|erms"),
    ("kernel: file system and the rest", r"kernel", r""),
    ("collector", r"python", r"gc_collect|visit_|_traverse|deduce_unreachable|untrack|dict_traverse"),
    ("copying in memory", r"libc[.-]", r"mem(move|cpy|set|cmp)"),
    ("interpreter", r"", r""),
)
"""By program or library, and by symbol: the first that matches counts."""


def shares(report: str) -> dict[str, float]:
    """Of perf's report, sorted by dso and symbol with `|` between fields: how much of all is each part's."""
    found: Counter[str] = Counter()
    for line in report.splitlines():
        match = re.match(r"\s*([\d.]+)%\s*\|\s*(\S+)\s*\|\s*\[.\]\s*(\S+)", line)
        if match:
            found[_part_of(match[2], match[3])] += float(match[1])
    whole = found.total()
    return {name: value / whole for name, value in found.most_common()} if whole else {}


def _part_of(library: str, function: str) -> str:
    return next(
        name for name, dso, symbol in _PARTS if re.search(dso, library) and re.search(symbol, function)
    )


def profiled(command: str, environment: dict[str, str], place: Path) -> dict[str, float]:
    """Run it under perf; {} if there is none, or it may not sample."""
    if shutil.which("perf") is None:
        return {}
    data = place / "perf.data"
    record = ["perf", "record", "-q", "-F", "997", "-o", str(data), "bash", "-c", command]
    done = subprocess.run(record, env=environment, cwd=place, check=False, capture_output=True)
    read = [
        "perf",
        "report",
        "-i",
        str(data),
        "--stdio",
        "--no-children",
        "--sort",
        "dso,symbol",
        "-t",
        "|",
    ]
    told = subprocess.run(read, cwd=place, check=False, capture_output=True, text=True)
    data.unlink(missing_ok=True)
    return shares(told.stdout) if done.returncode == 0 else {}


def phases(place: Path, volume: Path, smsnap: Path | None) -> Iterator[tuple[str, Taken, dict[str, float]]]:
    """Each phase twice: measured, and sampled."""
    peer = smsnapd(smsnap)
    for number in range(2):
        home = place / f"profile-{number}"
        shutil.rmtree(home, ignore_errors=True)
        environment = prepared(peer, home, volume)
        measure(peer.prepare, environment, place)
        if number == 0:
            full = measure(peer.full, environment, place)
            shutil.rmtree(home)
    yield "full", full, profiled(peer.full, environment, place)
    measure(peer.again, environment, place)
    yield "unchanged run", measure(peer.again, environment, place), profiled(peer.again, environment, place)
    read_once(home / "repo")
    with fresh_target(place) as target:
        restored = measure(peer.restore, {**environment, "T": str(target)}, place)
    with fresh_target(place) as target:
        yield "restore", restored, profiled(peer.restore, {**environment, "T": str(target)}, place)
    shutil.rmtree(home)


def report(place: Path, volume: Path, smsnap: Path | None) -> Iterator[str]:
    """The lines."""
    names, mib = names_and_mib(volume)
    read_once(volume)
    yield f"A volume of {names:,} names and {mib:,} MiB; CPU seconds are those of all processes together."
    yield ""
    yield "| floor, on all cores | seconds | CPU s |"
    yield "|---|--:|--:|"
    for floor in floors(volume, LEVEL):
        yield f"| {floor.work} | {floor.wall_s:.2f} | {floor.cpu_s:.2f} |"
    for name, taken, by_part in phases(place, volume, smsnap):
        yield ""
        yield f"| {name}: {taken.wall_s:.2f} s | CPU s | share |"
        yield "|---|--:|--:|"
        for part, share in by_part.items():
            yield f"| {part} | {share * taken.cpu_s:.2f} | {share:.0%} |"
        yield f"| all | {taken.cpu_s:.2f} | |"
        if not by_part:
            yield ""
            yield "perf is not there, or may not sample: no shares."
    yield ""
    told = {**machine.describe(place), **machine.versions()}
    names_told = ("cores", "CPU", "memory", "kernel", "file system", "date", "smsnapd", "Python", "zstandard")
    yield ", ".join(f"{name} {told[name]}" for name in names_told if name in told) + "."


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--place", type=Path, required=True, help="a directory; 20 GB at --scale 1")
    parser.add_argument("--volume", type=Path, help="a volume that is there, in place of one made anew")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--smsnap", type=Path, help="the program (default: this Python's)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write it there too")
    given = parser.parse_args()
    given.place.mkdir(parents=True, exist_ok=True)
    volume = given.volume or given.place / "volume"
    if not given.volume:
        shutil.rmtree(volume, ignore_errors=True)
        volume.mkdir()
        corpus.build(volume, given.scale)
    lines = []
    for line in report(given.place, volume, given.smsnap):
        print(line, flush=True)
        lines.append(line)
    if given.markdown:
        given.markdown.write_text("\n".join(lines) + "\n")
    if not given.volume:
        shutil.rmtree(volume)


if __name__ == "__main__":
    main()
