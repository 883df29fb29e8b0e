"""The bench works: everybody who is there does the same work, and what comes back is the volume."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

from tests.bench import compare, corpus, machine, million, moments, s3
from tests.bench.findings import Findings, load, save
from tests.bench.goals import judged
from tests.bench.meter import Taken
from tests.bench.peers import COPY, PEERS, Peer, prepared, smsnapd
from tests.bench.report import BEGIN, END, into_readme, markdown, table
from tests.bench.steps import STEPS, homes_of, run


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


@pytest.mark.slow
def test_a_run_and_its_table_and_the_daemon_after_it(volume: Path, tmp_path: Path) -> None:
    mine = tmp_path / "volume"
    shutil.copytree(volume, mine)
    peers = [smsnapd(), COPY]
    results, stored = run(peers, tmp_path, mine, keep="smsnapd")
    assert set(results["smsnapd"]) == set(STEPS) and set(results["cp -a"]) == {"restore"}
    assert stored["smsnapd"] > 0 and results["smsnapd"]["full"].peak_mib > 10
    assert len(list(table(results, stored))) == 4
    assert not (tmp_path / "target").exists() and not (tmp_path / "target.img").exists()
    home = homes_of(peers, tmp_path)["smsnapd"]
    assert os.listdir(mine) and not homes_of(peers, tmp_path)["cp -a"].exists()
    found = moments.of_events(home, mine, None, edits=1)
    assert found["daemon at rest, MiB"] > 10
    assert 0 < found["one byte by event: stored, bytes"] < 3 << 20


def test_environments_shrink_with_the_scale(tmp_path: Path) -> None:
    corpus.environments(tmp_path, 1, 0.02)
    library = Path(sysconfig.get_path("stdlib"))
    assert 0 < len(os.listdir(tmp_path / "env0/lib")) < len(os.listdir(library)) / 10
    assert sorted(os.listdir(tmp_path / "clone0/lib")) == sorted(os.listdir(tmp_path / "env0/lib"))


@pytest.mark.server
@pytest.mark.slow
def test_s3_beside_sync_and_boto3(volume: Path, tmp_path: Path) -> None:
    results = s3.beside_sync(tmp_path, volume, None)
    assert [set(taken) for taken in results.values()] == [{"full", "unchanged", "restore"}] * 2
    size, ceiling = s3.ceiling(tmp_path, 16, None, times=1)
    assert size == 16 << 20 and len(ceiling) == 4 and {"smsnapd", "boto3"} < set(ceiling)
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_many_files(tmp_path: Path) -> None:
    found = million.one_size(tmp_path, 800, edits=1)
    assert found["daemon at rest, MiB"] > 10 and found["full: processor, s"] > 0
    assert "growth" in markdown(Findings(million={"800": found}))
    assert os.listdir(tmp_path) == []


def test_one_part_of_the_command_and_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["--place", str(tmp_path / "place"), "--json", str(tmp_path / "found.json")]
    told = tmp_path / "told.md"
    some = ["--part", "tiny", "--scale", "0.0002", "--only", "smsnapd", "--only", "cp -a"]
    for more in (some, ["--part", "none", "--markdown", str(told)]):
        monkeypatch.setattr("sys.argv", ["compare", *given, *more])
        compare.main()
    assert "60 files of under 4 KiB" in told.read_text() and "A look at 0.0002" in told.read_text()
    assert os.listdir(tmp_path / "place") == []


def fast_and_slow(ours_s: float) -> Findings:
    results = {"smsnapd": {"full": Taken(ours_s, 1.0, 100.0)}, "restic": {"full": Taken(10.0, 1.0, 100.0)}}
    return Findings(volume=results, stored_mib={"smsnapd": 100, "restic": 100})


def test_goals_are_judged_by_the_numbers() -> None:
    (goal, met), (_, unknown), *_ = judged(fast_and_slow(2.5))
    assert goal.work == "full" and met is not None and met.is_met and met.measured == "4.0x"
    assert unknown is None
    (_, missed), *_ = judged(fast_and_slow(2.51))
    assert missed is not None and not missed.is_met


def test_the_report_goes_into_the_readme_and_nothing_else_does(tmp_path: Path) -> None:
    found = fast_and_slow(5.0)
    found.machine, found.programs = machine.describe(tmp_path), machine.versions()
    save(found, tmp_path / "found.json")
    text = markdown(load(tmp_path / "found.json"))
    assert "| full | ≥ 4x restic | 2.0x | **missed** |" in text
    assert f"kernel {os.uname().release}" in text and "smsnapd 0." in text
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    for _ in range(2):
        into_readme(readme, text)
    assert readme.read_text() == f"before\n{BEGIN}\n\n{text}\n{END}\nafter\n"
    readme.write_text("no marks")
    with pytest.raises(ValueError, match="has no lines"):
        into_readme(readme, text)
