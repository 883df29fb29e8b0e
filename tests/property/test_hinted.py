"""Hinted runs: looking only where something changed gives the same recovery points as looking everywhere."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from smsnapd.engine.backup.looks import Hints
from smsnapd.engine.backup.run import BackupOutcome, BackupRequest, run_backup
from smsnapd.engine.history import History
from smsnapd.engine.progress import Silent
from smsnapd.engine.restore.run import RestoreRequest, run_restore
from smsnapd.repository import Repository
from smsnapd.store import open_store
from smsnapd.store.base import StoreSettings


class Churn:
    """Random edits of a tree, and the directories that a watcher would name for them."""

    def __init__(self, root: Path, seed: int) -> None:
        self._root = root
        self._random = random.Random(seed)
        self.touched: set[bytes] = set()
        self.subtrees: set[bytes] = set()

    def edit(self) -> None:
        choices = (self._write, self._write, self._make, self._remove, self._rename, self._link, self._chmod)
        self._random.choice(choices)()

    def _relative(self, path: Path) -> bytes:
        text = os.fsencode(path.relative_to(self._root))
        return b"" if text == b"." else text

    def _touch(self, path: Path) -> None:
        self.touched.add(self._relative(path.parent))

    def _directory(self) -> Path:
        found = [self._root, *(path for path in self._root.rglob("*") if path.is_dir())]
        return self._random.choice(sorted(found))

    def _file(self) -> Path | None:
        found = sorted(path for path in self._root.rglob("*") if path.is_file())
        return self._random.choice(found) if found else None

    def _write(self) -> None:
        path = self._directory() / f"f{self._random.randrange(6)}"
        if not path.is_dir():
            path.write_bytes(self._random.randbytes(self._random.randrange(3000)))
            self._touch(path)

    def _make(self) -> None:
        path = self._directory() / f"d{self._random.randrange(4)}"
        if not path.exists():
            path.mkdir()
            self._touch(path)

    def _remove(self) -> None:
        path = self._directory()
        if path != self._root and self._random.random() < 0.3:
            shutil.rmtree(path)
            self._touch(path)
        elif (file := self._file()) is not None:
            file.unlink()
            self._touch(file)

    def _rename(self) -> None:
        path = self._random.choice([self._directory(), self._file() or self._root])
        target = self._directory() / f"r{self._random.randrange(6)}"
        inside = target == path or path in target.parents
        if path == self._root or inside or target.exists():
            return
        path.rename(target)
        self._touch(path)
        self._touch(target)
        if target.is_dir():
            self.subtrees.add(self._relative(target))

    def _link(self) -> None:
        file, target = self._file(), self._directory() / f"l{self._random.randrange(6)}"
        if file is not None and not target.exists():
            os.link(file, target)
            self._touch(target)  # the kernel tells nothing of the other names

    def _chmod(self) -> None:
        if (file := self._file()) is not None:
            file.chmod(self._random.choice((0o600, 0o644, 0o755)))
            self._touch(file)


def same(expected: Path, found: Path) -> str:
    command = ["rsync", "-aHAXnci", "--delete", f"{expected}/", f"{found}/"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("seed", range(4))
def test_hinted_runs_miss_nothing(tmp_path: Path, seed: int) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    settings = StoreSettings(url=f"file://{tmp_path}/repository")
    repository = Repository.create(open_store(settings), "a passphrase").repository
    churn = Churn(volume, seed)

    def backup(hints: Hints | None) -> BackupOutcome:
        request = BackupRequest(
            root=os.fsencode(volume), volume="nb", state_dir=tmp_path / "state", hints=hints
        )
        return run_backup(repository, settings, request, Silent())

    for _ in range(60):
        churn.edit()
    backup(None)
    moments: dict[str, Path] = {}
    for number in range(8):
        churn.touched.clear()
        churn.subtrees.clear()
        for _ in range(random.Random(seed * 100 + number).randrange(1, 12)):
            churn.edit()
        outcome = backup(Hints(frozenset(churn.touched), frozenset(churn.subtrees)))
        if outcome.snapshot is not None:
            moments[outcome.snapshot.id] = tmp_path / f"moment-{number}"
            subprocess.run(["cp", "-a", volume, moments[outcome.snapshot.id]], check=True)
    assert len(moments) > 3
    history = History.load(repository, "nb")
    methods = [history.record(name).manifest.completeness.method for name in history.names[1:]]
    assert "events" in methods
    for snapshot, moment in moments.items():
        target = tmp_path / f"restored-{snapshot}"
        request = RestoreRequest(target=os.fsencode(target))
        run_restore(repository, settings, history, history.find(snapshot), request, Silent())
        assert same(moment, target) == ""
    # Looking everywhere finds nothing that was missed, and counts the same tree.
    time.sleep(0.05)
    assert backup(None).snapshot is None
    files = sum(1 for path in volume.rglob("*") if path.is_file())
    assert history.find("latest").files == files
