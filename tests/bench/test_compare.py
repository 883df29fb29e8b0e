"""The bench works: everybody who is there does the same work, and what comes back is the volume."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.bench import corpus
from tests.bench.compare import STEPS, run, table
from tests.bench.peers import COPY, PEERS, Peer, prepared, smsnapd

THERE = [peer for peer in (smsnapd(), *PEERS) if peer.is_there]


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything but the environments, which take long to copy, and small."""
    root = tmp_path_factory.mktemp("bench") / "volume"
    root.mkdir()
    chance = random.Random(1)
    corpus.notebooks(root / "notebooks", chance, 2)
    corpus.photographs(root / "images", chance, 3)
    corpus.database(root / "results.sqlite", chance, 100)
    corpus.tiny_files(root / "tiny", 200)
    (root / "big").mkdir()
    corpus.write_random(root / "big/dataset.bin", chance, 2)
    return root


@pytest.mark.parametrize(
    "peer", [peer for peer in (smsnapd(), *PEERS) if peer.is_there], ids=lambda p: p.name
)
def test_what_is_measured_is_a_backup(peer: Peer, volume: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    environment = {**prepared(peer, tmp_path / "peer", volume), "T": str(target)}
    for command in filter(None, (peer.prepare, peer.full, peer.again, peer.restore)):
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", command],
            env=environment, cwd=tmp_path, check=False, capture_output=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    restored = next(path.parent for path in target.rglob("results.sqlite"))
    assert subprocess.run(["diff", "-r", volume, restored], check=False).returncode == 0


def test_a_run_and_its_table(volume: Path, tmp_path: Path) -> None:
    mine = tmp_path / "volume"
    shutil.copytree(volume, mine)
    results, stored = run([smsnapd(), COPY], tmp_path, mine, with_changes=True)
    assert set(results["smsnapd"]) == set(STEPS) and set(results["cp -a"]) == {"restore"}
    assert stored["smsnapd"] > 0 and results["smsnapd"]["full"].peak_mib > 10
    assert len(list(table(results, stored))) == 4
    assert not (tmp_path / "target").exists() and not (tmp_path / "target.img").exists()
    assert os.listdir(mine)
