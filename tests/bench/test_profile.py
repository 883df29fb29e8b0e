"""The profile works: what perf tells is told by what it was spent on, and the floor does all the work."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.bench.floor import floors
from tests.bench.profile import report, shares

REPORT = """
# Overhead|Shared Object|Symbol
    40.00%|backend_c.cpython-311-x86_64-linux-gnu.so  |[.] ZSTD_compressBlock_fast         |-  |-
    20.00%|[kernel.kallsyms]                          |[k] _copy_to_iter                   |-  |-
    10.00%|[kernel.kallsyms]                          |[k] ext4_lookup                     |-  |-
    10.00%|libpython3.11.so.1.0                       |[.] gc_collect_main                 |-  |-
    20.00%|libpython3.11.so.1.0                       |[.] _PyEval_EvalFrameDefault        |-  |-
"""


def test_shares_are_told_by_what_time_was_spent_on() -> None:
    assert shares(REPORT) == {
        "zstd": 0.4,
        "kernel: copying, zeroing": 0.2,
        "kernel: file system and the rest": 0.1,
        "collector": 0.1,
        "interpreter": 0.2,
    }
    assert shares("no samples") == {}


def test_the_floor_reads_everything_once_and_no_holes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(os.urandom(9 << 20))
    (tmp_path / "b").write_bytes(b"small")
    os.link(tmp_path / "b", tmp_path / "c")
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
        file.seek(1 << 39)
        file.write(b"x")
    (tmp_path / "link").symlink_to("a")
    assert [floor.work.split()[-1] for floor in floors(tmp_path, 1)] == [
        "reading",
        "(BLAKE3)",
        "1)",
        "(AES-GCM)",
    ]


@pytest.mark.slow
def test_the_profile_runs(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "a").write_bytes(os.urandom(1 << 20))
    told = "\n".join(report(tmp_path, volume, None))
    assert all(f"| {phase}: " in told for phase in ("full", "unchanged run", "restore"))
    assert os.listdir(tmp_path) == ["volume"]
