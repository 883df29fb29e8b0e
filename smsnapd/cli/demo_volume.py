"""The volume of `smsnap demo`: one of everything, and the edits of a working day."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

_SEED = 20210704
_YESTERDAY_NS = 1_763_500_000_123_456_789


def make(volume: Path) -> None:
    """Fill an empty directory with what notebook volumes hold, the awkward things too."""
    chance = random.Random(_SEED)
    _notebooks(volume, chance)
    _data(volume, chance)
    _awkward(volume)
    for number, directory in enumerate(sorted(volume.rglob("*"))):
        if directory.is_dir() and not directory.is_symlink():
            os.utime(directory, ns=(_YESTERDAY_NS, _YESTERDAY_NS + number))


def _notebooks(volume: Path, chance: random.Random) -> None:
    for number in range(120):
        directory = volume / "notebooks" / f"project-{number % 6}"
        directory.mkdir(parents=True, exist_ok=True)
        cells = "\n".join(f"x_{i} = {chance.random()}" for i in range(chance.randrange(10, 400)))
        notebook = directory / f"analysis-{number:03}.ipynb"
        notebook.write_text(f'{{"cells": [{{"source": "{cells}"}}]}}\n')
        os.utime(notebook, ns=(_YESTERDAY_NS, _YESTERDAY_NS + number * 1_000_000_007))
    environment = volume / "env" / "lib" / "python3.12" / "site-packages" / "package"
    environment.mkdir(parents=True)
    (volume / "env-copy").mkdir()
    for number in range(40):
        module = environment / f"module_{number}.py"
        module.write_text(f"VALUE = {number}\n" * 30)
        os.link(module, volume / "env-copy" / module.name)  # as conda does


def _data(volume: Path, chance: random.Random) -> None:
    data = volume / "data"
    data.mkdir()
    table = data / "table.csv"
    table.write_text(
        "".join(f"{i},{chance.gauss(0, 1):.6f},{chance.randrange(100)}\n" for i in range(400_000))
    )
    (data / "checkpoint.bin").write_bytes(chance.randbytes(20 * 1024 * 1024))
    with (data / "sparse.db").open("wb") as file:
        file.write(b"head" * 1024)
        file.seek(64 * 1024 * 1024)
        file.write(b"tail" * 1024)


def _awkward(volume: Path) -> None:
    odd = volume / "odd"
    odd.mkdir()
    (odd / "empty directory").mkdir()
    (odd / "empty").touch()
    (odd / ("long" * 63)).write_text("a name of 252 bytes\n")
    Path(os.fsdecode(os.fsencode(odd) + b"/not-utf8-\xff\xfe")).write_text("bytes are names\n")
    (odd / "dangling").symlink_to("../nowhere/at/all")
    (odd / "far").symlink_to("x/" * 1000 + "end")
    os.mkfifo(odd / "pipe", 0o640)
    script = odd / "run.sh"
    script.write_text("#!/bin/sh\necho hello\n")
    script.chmod(0o2750)
    try:
        os.setxattr(script, "user.origin", b"somewhere\0binary")
    except OSError:
        print("  (this file system has no extended attributes: the demo goes without)")
    if os.geteuid() == 0:
        os.chown(odd / "empty", 4242, 4343)
        (odd / "empty").chmod(0)


def edit_morning(volume: Path) -> list[str]:
    """Work a little; returns what was done, in words."""
    (volume / "notebooks" / "project-1" / "new idea.ipynb").write_text('{"cells": []}\n')
    with (volume / "data" / "table.csv").open("a") as file:
        file.write("400000,0.5,1\n" * 1000)
    with (volume / "data" / "checkpoint.bin").open("r+b") as file:
        file.seek(12_345_678)
        file.write(b"one changed stretch in 20 MiB")
    (volume / "odd" / "run.sh").chmod(0o700)
    return [
        "created a notebook",
        "appended to table.csv",
        "changed 29 bytes in checkpoint.bin",
        "chmod run.sh",
    ]


def edit_accident(volume: Path) -> list[str]:
    """What one would like undone."""
    (volume / "notebooks" / "project-2").rename(volume / "notebooks" / "archive")
    shutil.rmtree(volume / "notebooks" / "project-3")
    (volume / "data" / "table.csv").unlink()
    os.link(volume / "odd" / "run.sh", volume / "run-too.sh")
    odd = volume / "odd" / "dangling"
    odd.unlink()
    odd.mkdir()
    return [
        "renamed project-2 to archive",
        "deleted project-3 and table.csv",
        "hard-linked run.sh",
        "made a directory of a link",
    ]


def edit_evening(volume: Path) -> list[str]:
    """Work on after the accident."""
    same = volume / "notebooks" / "project-0" / "analysis-000.ipynb"
    status = same.stat()
    content = bytearray(same.read_bytes())
    content[100:108] = b"12345678"
    same.write_bytes(content)
    os.utime(same, ns=(status.st_atime_ns, status.st_mtime_ns))
    (volume / "env-copy" / "module_7.py").unlink()
    (volume / "env-copy" / "module_7.py").write_text("# a hard link broken\n")
    with (volume / "data" / "sparse.db").open("r+b") as file:
        file.seek(32 * 1024 * 1024)
        file.write(b"middle" * 1000)
    return ["edited a notebook, same size and time", "broke a hard link", "wrote into the sparse file's hole"]
