"""smsnapd beside what people would pick instead: the same work on the same data, in turn, in one run.

    python -m tests.bench.compare --place /var/tmp/bench --readme        # as root; about half an hour
    python -m tests.bench.compare --place /var/tmp/bench --scale 0.05    # a look whether it works
    python -m tests.bench.compare --place /var/tmp/bench --part volume --only restic --json found.json

The parts:
  volume   a notebook-like volume: full, unchanged, 1 % changed, one byte of the largest file, restore,
           by smsnapd, restic, borg, rclone crypt, the article's pipeline and its modern form; `cp -a` beside
           the restore. After that the daemon on the same repository: one byte by an event, nothing changed, a
           file's close to its recovery point, memory at rest; and how long commands take to start
  tiny     300,000 files of under 4 KiB
  s3       a twentieth of the volume to one SeaweedFS, beside `aws s3 sync`
  ceiling  noise to a server that discards it, beside boto3; over TLS, and without
  million  1,000,000 files, and a tenth of them (see tests.bench.million)

Programs that are not there are left out and named. Everything is told in Markdown: the goals, judged by the
numbers, the tables, versions and the machine. Time ends when what was written is on the disk, by `sync -f`
where a program does not see to it itself. As root every restore goes to a file system of its own, new
(deleting before makes the creates that follow slower). The page cache is warm; with less memory than the
volume and a repository need (10 GiB), the disk is measured. What --json names is read first and written at
the end of each part: parts may be measured apart, and --part none only reports.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.bench import corpus, machine, million, moments, s3
from tests.bench.findings import Findings, load, save
from tests.bench.peers import COPY, PEERS, Peer, smsnapd
from tests.bench.report import into_readme, markdown
from tests.bench.steps import STEPS, WITHOUT_CHANGES, homes_of, names_and_mib, run
from tests.servers import ServerMissingError

TINY_FILES = 300_000
MANY_FILES = 1_000_000
NOISE_MIB = 3072
S3_SHARE = 0.05


def main() -> None:
    """Measure what is asked for, and tell."""
    given = _arguments()
    given.place.mkdir(parents=True, exist_ok=True)
    found = load(given.json)
    if given.scale != 1:
        found.note(
            f"A look at {given.scale:g} of the size: of so little the ratios are those of programs' starts."
        )
    if os.geteuid():
        found.note("Not as root: restores go to the file system in use, and the daemon hears by inotify.")
    for part in given.part or PARTS:
        if part != "none":
            print(f"--- {part}", file=sys.stderr)
            _MEASURE[part](given, found)
            found.machine, found.programs = machine.describe(given.place), machine.versions()
            save(found, given.json)
    text = markdown(found)
    print(text)
    if given.markdown:
        given.markdown.write_text(text)
    if given.readme:
        into_readme(Path(__file__).parents[2] / "README.md", text)


def _volume(given: argparse.Namespace, found: Findings) -> None:
    volume = _built(given, given.scale)
    found.names, found.volume_mib = names_and_mib(volume)
    peers = _peers(given, found)
    found.volume, found.stored_mib = run(peers, given.place, volume, STEPS, keep="smsnapd")
    home = homes_of(peers, given.place).get("smsnapd")
    if home is not None:
        found.moments = moments.of_events(home, volume, given.smsnap)
        found.moments |= moments.of_commands(given.place, given.smsnap)
        shutil.rmtree(home)
    shutil.rmtree(volume)


def _tiny(given: argparse.Namespace, found: Findings) -> None:
    volume = _empty(given.place / "volume")
    found.tiny_files = max(40, round(TINY_FILES * given.scale))
    corpus.tiny_files(volume, found.tiny_files)
    peers = [peer for peer in _peers(given, found) if peer.name != "rclone crypt"]  # minutes, and no goal
    found.tiny, found.tiny_stored_mib = run(peers, given.place, volume, WITHOUT_CHANGES)
    shutil.rmtree(volume)


def _s3(given: argparse.Namespace, found: Findings) -> None:
    volume = _built(given, given.scale * S3_SHARE)
    found.s3_names, found.s3_mib = names_and_mib(volume)
    try:
        found.s3 = s3.beside_sync(given.place, volume, given.smsnap)
    except ServerMissingError as error:
        found.note(f"Left out: to S3, beside `aws s3 sync`: {error}.")
    shutil.rmtree(volume)


def _ceiling(given: argparse.Namespace, found: Findings) -> None:
    mib = max(256, round(NOISE_MIB * given.scale))
    found.ceiling_bytes, found.ceiling = s3.ceiling(given.place, mib, given.smsnap)


def _million(given: argparse.Namespace, found: Findings) -> None:
    files = max(400, round(MANY_FILES * given.scale))
    found.million = million.measured(given.place, files, given.smsnap)


_MEASURE = {"volume": _volume, "tiny": _tiny, "s3": _s3, "ceiling": _ceiling, "million": _million}
PARTS = tuple(_MEASURE)


def _built(given: argparse.Namespace, scale: float) -> Path:
    """The volume, made, or a copy of the one that is given."""
    volume = _empty(given.place / "volume")
    if given.volume and scale == given.scale:
        subprocess.run(["cp", "-a", f"{given.volume}/.", volume], check=True)
    else:
        corpus.build(volume, scale)
    return volume


def _empty(directory: Path) -> Path:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    return directory


def _peers(given: argparse.Namespace, found: Findings) -> list[Peer]:
    """Who takes part; who cannot is noted."""
    wanted = [
        peer for peer in (smsnapd(given.smsnap), *PEERS, COPY) if not given.only or peer.name in given.only
    ]
    found.absent = [peer.name for peer in wanted if not peer.is_there]
    return [peer for peer in wanted if peer.is_there]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("--place", type=Path, required=True, help="a directory for everything; 35 GB at --scale 1")
    add("--scale", type=float, default=1.0, help="of all that is measured")
    add("--part", action="append", choices=(*PARTS, "none"), help="this part alone; may be repeated")
    add("--only", action="append", metavar="NAME", help="this program alone; may be repeated")
    add(
        "--volume",
        type=Path,
        metavar="DIR",
        help="part volume: a copy of DIR, not a volume made anew",
    )
    add(
        "--smsnap",
        type=Path,
        metavar="PATH",
        help="smsnap, with smsnapd beside it (default: this Python's)",
    )
    add("--json", type=Path, metavar="FILE", help="findings: read first, written after each part")
    add("--markdown", type=Path, metavar="FILE", help="write the report there too")
    add("--readme", action="store_true", help="write the report into README.md, between its marks")
    return parser.parse_args()


if __name__ == "__main__":
    main()
