"""The same steps for everybody on one volume, in turn: full, unchanged, changed, restore."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.bench import corpus
from tests.bench.findings import Results
from tests.bench.meter import CommandFailedError, Taken, measure
from tests.bench.peers import COPY, Peer, prepared

STEPS = ("full", "unchanged", "1 % changed", "one byte", "restore")
WITHOUT_CHANGES = ("full", "unchanged", "restore")
_CHANGES: dict[str, Callable[[Path], object]] = {
    "1 % changed": corpus.change_one_percent,
    "one byte": corpus.change_one_byte,
}


def homes_of(peers: Sequence[Peer], place: Path) -> dict[str, Path]:
    """Where each keeps what it has."""
    return {peer.name: place / f"peer-{number}" for number, peer in enumerate(peers)}


def run(
    peers: Sequence[Peer], place: Path, volume: Path, steps: Sequence[str] = STEPS, keep: str = ""
) -> tuple[Results, dict[str, int]]:
    """Every peer in turn for every step, so that all see the same volume; what each took, and MiB stored.

    A repository is deleted as soon as it has been restored, but that of `keep`. One that knows fulls alone
    is restored right after the first.
    """
    homes = homes_of(peers, place)
    environments, stored = {}, {}
    for peer in peers:
        shutil.rmtree(homes[peer.name], ignore_errors=True)
        environments[peer.name] = prepared(peer, homes[peer.name], volume)
        measure(peer.prepare, environments[peer.name], place)
    results: Results = {peer.name: {} for peer in peers}
    for step in steps:
        if step in _CHANGES:
            _CHANGES[step](volume)
        for peer in peers:
            for one in _due(peer, step):
                if (taken := _step(peer, one, environments[peer.name], place)) is not None:
                    results[peer.name][one] = taken
                    print(f"{peer.name}: {one}: {taken.wall_s:.2f} s", file=sys.stderr)
                if one == "full":
                    stored[peer.name] = _mib_in(homes[peer.name] / "repo")
                if one == "restore" and peer.name != keep:
                    shutil.rmtree(homes[peer.name])
    return results, stored


def _due(peer: Peer, step: str) -> tuple[str, ...]:
    """What is to be done with the peer when it is the step's turn."""
    if peer.again or peer is COPY:
        return (step,)
    return ("full", "restore") if step == "full" else ()


def _step(peer: Peer, step: str, environment: dict[str, str], place: Path) -> Taken | None:
    """Measure one step; what it reads is in memory before, whoever went first and whatever came between."""
    _warm(environment["V"], contents=step == "full" or peer is COPY)
    try:
        if step == "restore":
            read_once(Path(environment["P"]))
            with fresh_target(place) as target:
                return measure(f'{peer.restore} && sync -f "$T"', {**environment, "T": str(target)}, place)
        command = peer.full if step == "full" else peer.again
        durable = f'{command} && sync -f "$P"'
        return measure(durable, environment, place) if command and peer is not COPY else None
    except CommandFailedError as error:
        print(f"left out: {error}", file=sys.stderr)
        return None


@contextlib.contextmanager
def fresh_target(place: Path) -> Iterator[Path]:
    """An empty directory; as root on a file system of its own: deletions before slow the creates."""
    target, image = place / "target", place / "target.img"
    target.mkdir()
    mounted = False
    try:
        if os.geteuid() == 0:
            subprocess.run(["truncate", "-s", "40G", image], check=True)
            subprocess.run(
                ["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0", "-N", "1200000", image], check=True
            )
            mounted = _mount(image, target)
        place_to_fill = target / "filled"
        place_to_fill.mkdir()
        yield place_to_fill
    finally:
        if mounted:
            subprocess.run(["umount", target], check=True)
        image.unlink(missing_ok=True)
        shutil.rmtree(target)


def _mount(image: Path, target: Path) -> bool:
    """Mount a file system image; whether that went well.

    The loop device reads and writes past the page cache, as a disk does: by itself it would copy all that is
    written to it into the pages of its file.
    """
    command = ["losetup", "--find", "--show", "--direct-io=on", image]
    attached = subprocess.run(command, check=False, capture_output=True, text=True)
    if attached.returncode:
        return False
    device = attached.stdout.strip()
    mounted = subprocess.run(["mount", device, target], check=False).returncode == 0
    subprocess.run(["losetup", "-d", device], check=True)  # of one in use that is done when it is unmounted
    return mounted


def _warm(volume: str, *, contents: bool) -> None:
    if contents:
        read_once(Path(volume))
    else:
        subprocess.run(f'find "{volume}" -size +0 > /dev/null', shell=True, check=True)


def read_once(volume: Path) -> None:
    """Everything into memory: the disk is not what is measured."""
    subprocess.run(f'tar -C "{volume}" -cf - . | cat > /dev/null', shell=True, check=True)


def names_and_mib(volume: Path) -> tuple[int, int]:
    """How many names the volume has, and MiB in them, each file once."""
    seen, names, size = set(), 0, 0
    for directory, below, files in os.walk(volume):
        names += len(below) + len(files)
        for name in files:
            status = os.lstat(os.path.join(directory, name))
            if status.st_ino not in seen:
                seen.add(status.st_ino)
                size += status.st_blocks * 512
    return names, size >> 20


def _mib_in(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size >> 20
    found = (Path(directory, name) for directory, _, names in os.walk(path) for name in names)
    return sum(file.stat().st_size for file in found) >> 20
