"""The bench of latency works, and what it measures does not grow with the tree: counted, not timed."""

from __future__ import annotations

import cProfile
import os
from pathlib import Path

from smsnapd.engine.backup.looks import Hints
from smsnapd.engine.backup.run import BackupRequest, run_backup
from smsnapd.engine.progress import Silent
from smsnapd.repository import Repository
from smsnapd.store import open_store
from smsnapd.store.base import StoreSettings
from tests.bench.latency import measure, plant


def test_the_bench_runs(tmp_path: Path) -> None:
    found = measure(tmp_path, directories=20, files=2, edits=2)
    assert found["files"] == 40


def calls_of_a_delta(place: Path, directories: int) -> int:
    """How many functions are called for a delta of one file, in a tree of so many directories."""
    volume = place / "volume"
    places = plant(volume, directories, files=3)
    settings = StoreSettings(url=(place / "repo").as_uri())
    store = open_store(settings)
    repository = Repository.create(store, "correct horse battery").repository

    def run(hints: Hints | None) -> int:
        request = BackupRequest(os.fsencode(volume), "nb", place / "state", workers=0, hints=hints)
        return run_backup(repository, settings, request, Silent()).changed

    run(None)
    touched = Hints(frozenset((os.fsencode(places[0].relative_to(volume)),)))
    for content in ("settle", "the imports"):
        (places[0] / "f0").write_text(content)
        run(touched)
    (places[0] / "f0").write_text("the delta")
    profile = cProfile.Profile()
    changed = profile.runcall(run, touched)
    store.close()
    assert changed == 1
    profile.create_stats()
    stats: dict[object, tuple[int, ...]] = profile.stats  # type: ignore[attr-defined]
    return sum(entry[0] for entry in stats.values())


def test_a_delta_costs_the_same_in_a_large_tree(tmp_path: Path) -> None:
    small = calls_of_a_delta(tmp_path / "small", 10)
    large = calls_of_a_delta(tmp_path / "large", 1000)
    assert large < small * 1.1
