"""A notebook-like volume to measure with, the same in every run.

Python environments with a hard-linked copy, notebooks with images, git repositories, CSV, columns of numbers,
checkpoints, photographs, a sparse file, a SQLite database; and apart from it very many tiny files. Contents
come from a seeded generator, but for the environments: those are this machine's own Python.
"""

from __future__ import annotations

import base64
import json
import os
import random
import sqlite3
import subprocess
import sysconfig
import zlib
from pathlib import Path

MIB = 1 << 20
SEED = 2021


def build(root: Path, scale: float) -> None:
    """Fill `root`; `scale` 1 is about 6 GB and 130,000 names."""
    chance = random.Random(SEED)
    environments(root / "envs", max(1, round(2 * scale)), min(1.0, 2 * scale))
    notebooks(root / "notebooks", chance, max(2, round(400 * scale)))
    repositories(root / "git", chance, max(1, round(10 * scale)))
    tables(root / "data", chance, max(1, round(12 * scale)))
    checkpoints(root / "models", chance, max(1, round(20 * scale)))
    photographs(root / "images", chance, max(2, round(3000 * scale)))
    (root / "big").mkdir()
    write_random(root / "big/dataset.bin", chance, max(16, round(1024 * scale)))
    sparse(root / "big/sparse.img", chance)
    database(root / "results.sqlite", chance, max(100, round(300_000 * scale)))


def tiny_files(root: Path, count: int) -> None:
    """Very many files of under 4 KiB, forty to a directory."""
    chance = random.Random(SEED)
    text = words(chance, 8192)
    for number in range(count):
        directory = root / f"{number // 4000:03d}" / f"{number // 40:05d}"
        if number % 40 == 0:
            directory.mkdir(parents=True)
        start, size = chance.randrange(4096), chance.randrange(20, 4096)
        (directory / f"{number}.json").write_bytes(text[start : start + size])


def environments(root: Path, count: int, share: float = 1.0) -> None:
    """This Python's library and its packages, so many times; the first once more by hard links.

    `share` is how much of them, by what lies at their top: 1 is all.
    """
    library, packages = (Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib"))
    for number in range(count):
        made = root / f"env{number}" / "lib"
        for source, target in ((library, made), (packages, made / "site-packages")):
            target.mkdir(parents=True)
            found = sorted(path for path in source.iterdir() if path.name != "site-packages")
            some = [path for at, path in enumerate(found) if int(at * share) < int((at + 1) * share)]
            if some:
                subprocess.run(["cp", "-a", "-t", target, *some], check=True)
    subprocess.run(["cp", "-al", root / "env0", root / "clone0"], check=True)


def notebooks(root: Path, chance: random.Random, count: int) -> None:
    """Notebooks with pictures in their outputs."""
    for number in range(count):
        place = root / f"project{number // 20}"
        place.mkdir(parents=True, exist_ok=True)
        cells = []
        for _ in range(30):
            source = words(chance, chance.randrange(100, 900)).decode()
            picture = base64.b64encode(chance.randbytes(chance.randrange(2_000, 60_000))).decode()
            outputs = [{"output_type": "display_data", "data": {"image/png": picture}, "metadata": {}}]
            cells.append({"cell_type": "code", "source": source, "outputs": outputs, "metadata": {}})
        text = json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}, indent=1)
        (place / f"analysis-{number}.ipynb").write_text(text)


def repositories(root: Path, chance: random.Random, count: int) -> None:
    """Git repositories with loose objects, as they grow."""
    quiet = ("git", "-c", "user.name=n", "-c", "user.email=n@example.org", "-c", "init.defaultBranch=main")
    for number in range(count):
        place = root / f"repo{number}"
        place.mkdir(parents=True)
        subprocess.run([*quiet, "init", "-q", place], check=True)
        for commit in range(10):
            for file in range(20):
                (place / f"module{commit}_{file}.py").write_bytes(words(chance, chance.randrange(500, 9000)))
            subprocess.run([*quiet, "-C", place, "add", "-A"], check=True)
            subprocess.run([*quiet, "-C", place, "commit", "-q", "-m", f"change {commit}"], check=True)


def tables(root: Path, chance: random.Random, count: int) -> None:
    """CSV as people export it, and columns packed as Parquet packs them."""
    root.mkdir(parents=True)
    for number in range(count):
        rows = [",".join(f"{chance.gauss(0, 100):.4f}" for _ in range(12)) for _ in range(20_000)]
        block = "\n".join(rows).encode()
        with (root / f"table{number}.csv").open("wb") as file:
            for _ in range(20):
                file.write(block)
        (root / f"table{number}.parquet").write_bytes(zlib.compress(block * 4, 1))


def checkpoints(root: Path, chance: random.Random, count: int) -> None:
    """Weights: half of each number looks like noise, the other like its neighbours."""
    root.mkdir(parents=True)
    for number in range(count):
        weights = bytearray(48 * MIB)
        weights[0::4] = chance.randbytes(12 * MIB)
        weights[1::4] = chance.randbytes(12 * MIB)
        weights[2::4] = bytes(value & 0x1F for value in chance.randbytes(12 * MIB))
        weights[3::4] = bytes((0x3D,)) * (12 * MIB)
        (root / f"step-{number:05d}.ckpt").write_bytes(weights)


def photographs(root: Path, chance: random.Random, count: int) -> None:
    """What no compressor makes smaller."""
    for number in range(count):
        place = root / f"{number // 100:03d}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.jpg").write_bytes(
            b"\xff\xd8\xff\xe0" + chance.randbytes(chance.randrange(40_000, 400_000))
        )


def write_random(path: Path, chance: random.Random, size_mib: int) -> None:
    """One large file, half noise and half text, of so many MiB."""
    text = words(chance, MIB)
    with path.open("wb") as file:
        for number in range(size_mib):
            file.write(text if number % 2 else chance.randbytes(MIB))


def sparse(path: Path, chance: random.Random) -> None:
    """A file of 1 GiB with a little in it."""
    with path.open("wb") as file:
        for _ in range(40):
            file.seek(chance.randrange(1 << 18) * 4096)
            file.write(chance.randbytes(4096))
        file.truncate(1 << 30)


def database(path: Path, chance: random.Random, rows: int) -> None:
    """A table of results."""
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE result(id INTEGER PRIMARY KEY, name TEXT, value REAL)")
    values = ((number, f"run-{chance.randrange(1000)}", chance.random()) for number in range(rows))
    connection.executemany("INSERT INTO result VALUES (?, ?, ?)", values)
    connection.commit()
    connection.close()


def words(chance: random.Random, size: int) -> bytes:
    """Text-like bytes that compress about as source code does."""
    vocabulary = [chance.randbytes(chance.randrange(2, 8)).hex() for _ in range(300)]
    text = " ".join(chance.choices(vocabulary, k=size // 6 + 1))
    return text.encode()[:size]


# --- what somebody does between two backups


def change_one_percent(root: Path) -> int:
    """Append to every hundredth small file that is not shared by hard links; how many."""
    changed = 0
    for number, path in enumerate(sorted(plain_files(root))):
        if number % 100 == 0:
            with path.open("ab") as file:
                file.write(b"\n# changed\n")
            changed += 1
    return changed


def change_one_byte(root: Path) -> None:
    """Change one byte in the middle of the largest file."""
    path = root / "big/dataset.bin"
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        before = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes((before[0] ^ 0xFF,)))


def plain_files(root: Path) -> list[Path]:
    """The small regular files of one name."""
    found = []
    for directory, _, names in os.walk(root):
        for name in names:
            path = Path(directory, name)
            status = path.lstat()
            if status.st_nlink == 1 and 0 < status.st_size < MIB and not path.is_symlink():
                found.append(path)
    return found
