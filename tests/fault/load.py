"""A load on a volume, for tests that hold it: appends, rewrites in place, mmap, renames; run as a program.

`load.py DIRECTORY SEED` writes below a directory of its own until its standard input ends, and then prints
the longest time, in seconds, that one write had to wait.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

BLOCK = 4096


class Load:
    """Writes all kinds of things, one after the other."""

    def __init__(self, root: Path, seed: int) -> None:
        self._random = random.Random(seed)
        self._root = root / f"load{seed}"
        self._root.mkdir()
        self._place = self._root / "rewritten"
        self._place.write_bytes(self._random.randbytes(96 * BLOCK))
        (self._root / "mapped").write_bytes(bytes(64 * BLOCK))
        with (self._root / "mapped").open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self._number = 0

    def steps(self) -> list[Callable[[], object]]:
        """What it can do."""
        return [self.append, self.rewrite, self.write_to_map, self.replace, self.move, self.make, self.remove]

    def append(self) -> None:
        """A log grows."""
        with (self._root / f"log{self._random.randrange(3)}").open("ab") as file:
            file.write(self._random.randbytes(self._random.randrange(1, 3 * BLOCK)))
            if file.tell() > 4_000_000:
                file.truncate(self._random.randrange(BLOCK))

    def rewrite(self) -> None:
        """Some bytes in the middle of a file, which keeps its size."""
        with self._place.open("r+b") as file:
            file.seek(self._random.randrange(95 * BLOCK))
            file.write(self._random.randbytes(self._random.randrange(1, BLOCK)))

    def write_to_map(self) -> None:
        """Memory that is a file: most such writes are seen by nobody until they are written back."""
        at = self._random.randrange(63 * BLOCK)
        self._map[at : at + 64] = self._random.randbytes(64)

    def replace(self) -> None:
        """A file takes the place of another, as editors save."""
        new = self._root / "saved.new"
        new.write_bytes(self._random.randbytes(self._random.randrange(2 * BLOCK)))
        new.rename(self._root / f"saved{self._random.randrange(5)}")

    def move(self) -> None:
        """A directory, and what is in it, gets another name."""
        names = [f"d{number}" for number in range(6)]
        old, new = self._random.sample(names, 2)
        with contextlib.suppress(OSError):
            (self._root / old).rename(self._root / new)

    def make(self) -> None:
        """A new file in a directory, deeper now and then; some with attributes or a second name."""
        self._number += 1
        place = self._root / f"d{self._random.randrange(6)}"
        if self._random.random() < 0.3:
            place /= f"deeper{self._random.randrange(3)}"
        place.mkdir(parents=True, exist_ok=True)
        path = place / f"f{self._number}"
        path.write_bytes(self._random.randbytes(self._random.randrange(3 * BLOCK)))
        if self._random.random() < 0.2:
            os.setxattr(path, "user.note", self._random.randbytes(self._random.choice((10, 700))))
        if self._random.random() < 0.2:
            os.link(path, self._root / f"second{self._number}")

    def remove(self) -> None:
        """One of the files that were made."""
        found = [path for path in self._root.rglob("*") if path.name.startswith(("f", "second"))]
        if len(found) > 40:
            self._random.choice(found).unlink()


def main(root: Path, seed: int) -> None:
    """Write until standard input ends."""
    load, longest = Load(root, seed), 0.0
    steps, choose = load.steps(), random.Random(seed)
    print("ready", flush=True)
    while not select.select([sys.stdin], [], [], 0)[0]:
        began = time.monotonic()
        choose.choice(steps)()
        longest = max(longest, time.monotonic() - began)
    print(longest, flush=True)


@contextlib.contextmanager
def under_load(root: Path, processes: int = 2) -> Iterator[list[float]]:
    """Load while the context lasts; then the list has the longest wait of each process."""
    waits: list[float] = []
    running = [
        subprocess.Popen(
            [sys.executable, __file__, root, str(seed)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for seed in range(processes)
    ]
    try:
        for process in running:
            assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        yield waits
    finally:
        for process in running:
            told, _ = process.communicate()
            waits += [float(line) for line in told.split()]


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
