"""What is read of ext4 holds all that dumpe2fs calls in use, whatever mke2fs was asked for."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from smsnapd.volume.block.device import Device
from smsnapd.volume.block.ext4 import read_geometry, read_groups, table_range, used_table_range
from smsnapd.volume.block.look import Eyes, Log
from smsnapd.volume.block.masks import CELL, UNIT, UNITS

pytestmark = pytest.mark.skipif(shutil.which("mkfs.ext4") is None, reason="needs mkfs.ext4")

FORMS = {
    "plain": [],
    "1k blocks": ["-b", "1024"],
    "2k blocks": ["-b", "2048"],
    "32 bit, no flex_bg": ["-O", "^64bit,^flex_bg"],
    "no checksums": ["-O", "^metadata_csum,^uninit_bg"],
    "uninit_bg": ["-O", "^metadata_csum,uninit_bg"],
    "meta_bg": ["-O", "meta_bg,^resize_inode", "-b", "1024"],
    "bigalloc": ["-O", "bigalloc", "-C", "16384"],
    "bigalloc, 1k": ["-O", "bigalloc", "-b", "1024", "-C", "16384"],
    "sparse_super2": ["-O", "sparse_super2,^resize_inode"],
    "every group has a superblock": ["-O", "^sparse_super,^resize_inode"],
    "small inodes": ["-I", "128"],
    "no journal": ["-O", "^has_journal"],
    "ext3": ["-t", "ext3"],
    "ext2, 1k": ["-t", "ext2", "-b", "1024"],
    "inline data, ea_inode, orphan_file, quota": ["-O", "inline_data,ea_inode,orphan_file,quota"],
    "small groups": ["-g", "1024", "-b", "1024"],
    "mmp": ["-O", "mmp"],
    "64k blocks": ["-b", "65536", "-F"],
}


def made(path: Path, form: list[str], size: str = "64M") -> None:
    """A file system with some hundred files, with holes between them."""
    tree = path.parent / "tree"
    for number in range(12):
        directory = tree / f"{number:02}"
        directory.mkdir(parents=True)
        for file in range(20):
            (directory / f"{file}").write_bytes(os.urandom(1 + 977 * file * number % 60_000))
    (tree / "large").write_bytes(bytes(range(256)) * 20_000)
    subprocess.run(["truncate", "-s", size, path], check=True)
    subprocess.run(["mkfs.ext4", "-q", "-d", tree, *form, path], check=True, capture_output=True)
    gone = "".join(f"rm /{number:02}/{file}\n" for number in range(0, 12, 3) for file in range(0, 20, 2))
    subprocess.run(["debugfs", "-w", "-f", "-", path], input=gone.encode(), check=True, capture_output=True)


def used_by_dumpe2fs(path: Path) -> tuple[int, set[int]]:
    """The block size, and the blocks that dumpe2fs does not call free."""
    told = subprocess.run(["dumpe2fs", path], check=True, capture_output=True, text=True).stdout
    numbers = {key: int(value) for key, value in re.findall(r"^(.+?):\s+(\d+)$", told, re.MULTILINE)}
    blocks = set(range(numbers["First block"], numbers["Block count"]))
    # A range of free clusters is told by their first blocks.
    more = numbers.get("Cluster size", numbers["Block size"]) // numbers["Block size"]
    for line in re.findall(r"^  Free blocks: (.*)$", told, re.MULTILINE):
        for first, last in re.findall(r"(\d+)(?:-(\d+))?", line):
            blocks -= set(range(int(first), int(last or first) + more))
    return numbers["Block size"], blocks


def units_of(start: int, end: int) -> range:
    return range(start // UNIT, -(-end // UNIT))


@pytest.mark.parametrize("name", FORMS)
def test_the_units_read_are_those_in_use(tmp_path: Path, name: str) -> None:
    path = tmp_path / "image"
    made(path, FORMS[name])
    block, used = used_by_dumpe2fs(path)
    expected = {unit for number in used for unit in units_of(number * block, (number + 1) * block)}
    with Device(str(path), direct=False) as device:
        geometry = read_geometry(device)
        assert geometry is not None and geometry.block == block
        never = set()
        for group in read_groups(geometry, device):
            table, part = table_range(geometry, group), used_table_range(geometry, group)
            never |= {*units_of(table.start, table.end)} - {*units_of(part.start, part.end)}
        eyes = Eyes(device, tmp_path)
        allocated = eyes.look(0, Log.KEPT).allocated
        found = {
            cell * UNITS + bit
            for cell in range(allocated.cells)
            for bit in range(UNITS)
            if allocated[cell] >> bit & 1
        }
        eyes.close()
    assert expected - never <= found
    assert found - expected <= set(units_of(0, 2048))  # the boot sector
    assert len(found & never) <= geometry.groups * 2 * max(1, block // UNIT)  # shared units


def test_what_is_not_ext4_is_one_whole(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(os.urandom(3 * CELL + 512))
    with Device(str(path), direct=False) as device:
        eyes = Eyes(device, tmp_path)
        look = eyes.look(0, Log.KEPT)
        assert eyes.geometry is None
        assert [look.allocated[cell] for cell in range(4)] == [0xFFFF, 0xFFFF, 0xFFFF, 1]
        eyes.close()
