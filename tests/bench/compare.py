"""smsnapd beside what people would pick instead: the same work on the same volume, in turn, in one run.

    python -m tests.bench.compare --place /var/tmp/bench              # about 5 GB, as root
    python -m tests.bench.compare --place /var/tmp/bench --scale 0.02 # a look whether it works
    python -m tests.bench.compare --place /var/tmp/bench --tiny 300000

prints a table in Markdown, with ratios to smsnapd, and one JSON object a line to --json. Programs that are
not there are left out. As root every restore goes to a file system of its own, new (deleting before makes
the creates that follow slower).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from tests.bench import corpus
from tests.bench.meter import CommandFailedError, Taken, measure
from tests.bench.peers import COPY, PEERS, Peer, prepared, smsnapd

STEPS = ("full", "unchanged", "1 % changed", "one byte", "restore")
NOTHING_LATER = ("-E", "lazy_itable_init=0,lazy_journal_init=0")
Results = dict[str, dict[str, Taken]]


def main() -> None:
    """Build the volume, measure everybody, print the table."""
    given = _arguments()
    place: Path = given.place
    volume = place / "volume"
    place.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(volume, ignore_errors=True)
    volume.mkdir()
    if given.tiny:
        corpus.tiny_files(volume, given.tiny)
    else:
        corpus.build(volume, given.scale)
    peers = [peer for peer in (smsnapd(), *PEERS, COPY) if peer.is_there]
    if given.only:
        peers = [peer for peer in peers if peer.name in given.only]
    results, stored = run(peers, place, volume, with_changes=not given.tiny)
    for line in table(results, stored):
        print(line)
    if given.json:
        record = {
            name: {step: asdict(taken) for step, taken in steps.items()} for name, steps in results.items()
        }
        given.json.write_text(json.dumps({"steps": record, "stored_mib": stored}) + "\n")


def run(
    peers: list[Peer], place: Path, volume: Path, *, with_changes: bool
) -> tuple[Results, dict[str, int]]:
    """Every peer in turn for every step, so that all see the same volume; what each took, and MiB stored."""
    homes = {peer.name: place / f"peer-{number}" for number, peer in enumerate(peers)}
    environments = {}
    for peer in peers:
        shutil.rmtree(homes[peer.name], ignore_errors=True)
        environments[peer.name] = prepared(peer, homes[peer.name], volume)
        measure(peer.prepare, environments[peer.name], place)
    results: Results = {peer.name: {} for peer in peers}
    _read_once(volume)
    for step in STEPS if with_changes else ("full", "unchanged", "restore"):
        _change(volume, step)
        for peer in peers:
            if (taken := _step(peer, step, environments[peer.name], place)) is not None:
                results[peer.name][step] = taken
                print(f"{peer.name}: {step}: {taken.wall_s:.2f} s", file=sys.stderr)
        if step == "full":
            stored = {peer.name: _mib_in(homes[peer.name] / "repo") for peer in peers}
    return results, stored


def _step(peer: Peer, step: str, environment: dict[str, str], place: Path) -> Taken | None:
    try:
        if step == "restore":
            with _fresh_target(place) as target:
                return measure(peer.restore, {**environment, "T": str(target)}, place)
        command = peer.full if step == "full" else peer.again
        return measure(command, environment, place) if command and peer is not COPY else None
    except CommandFailedError as error:
        print(f"left out: {error}", file=sys.stderr)
        return None


def _change(volume: Path, step: str) -> None:
    if step == "1 % changed":
        corpus.change_one_percent(volume)
    elif step == "one byte":
        corpus.change_one_byte(volume)


def table(results: Results, stored: dict[str, int]) -> Iterator[str]:
    """Rows of Markdown: seconds, and how many times as long as smsnapd each takes."""
    steps = [step for step in STEPS if any(step in taken for taken in results.values())]
    yield f"| | {' | '.join(steps)} | CPU of the full | peak MiB | stored MiB |"
    yield "|---" * (len(steps) + 4) + "|"
    ours = results.get("smsnapd", {})
    for name, taken in results.items():
        cells = [_cell(taken.get(step), ours.get(step)) for step in steps]
        full = taken.get("full")
        more = [f"{full.cpu_s:.1f}", f"{full.peak_mib:.0f}"] if full else ["", ""]
        yield f"| {' | '.join([name, *cells, *more, str(stored.get(name) or '')])} |"


def _cell(taken: Taken | None, ours: Taken | None) -> str:
    if taken is None:
        return ""
    ratio = f" ({taken.wall_s / ours.wall_s:.1f}x)" if ours is not None and taken is not ours else ""
    return f"{taken.wall_s:.2f}{ratio}"


@contextlib.contextmanager
def _fresh_target(place: Path) -> Iterator[Path]:
    """An empty directory; as root on a file system of its own."""
    target, image = place / "target", place / "target.img"
    target.mkdir()
    mounted = False
    try:
        if os.geteuid() == 0:
            subprocess.run(["truncate", "-s", "40G", image], check=True)
            subprocess.run(
                ["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0", "-N", "1000000", image], check=True
            )
            mounted = subprocess.run(["mount", "-o", "loop", image, target], check=False).returncode == 0
        place_to_fill = target / "filled"
        place_to_fill.mkdir()
        yield place_to_fill
    finally:
        if mounted:
            subprocess.run(["umount", target], check=True)
        image.unlink(missing_ok=True)
        shutil.rmtree(target)


def _read_once(volume: Path) -> None:
    """Everything into memory: the disk is not what is measured."""
    subprocess.run(f'tar -C "{volume}" -cf - . | cat > /dev/null', shell=True, check=True)


def _mib_in(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size >> 20
    found = (Path(directory, name) for directory, _, names in os.walk(path) for name in names)
    return sum(file.stat().st_size for file in found) >> 20


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--place", type=Path, required=True, help="a directory for everything; needs 30 GB")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--tiny", type=int, default=0, metavar="N", help="N tiny files instead")
    parser.add_argument("--only", action="append", metavar="NAME", help="this program alone; may be repeated")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
