"""A volume and its repository for a test: backed up, restored and exported by the engine's front doors."""

from __future__ import annotations

import contextlib
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from smsnapd.engine.backup import snapshot as snapshot_module
from smsnapd.engine.backup.run import BackupOutcome, BackupRequest, run_backup
from smsnapd.engine.check import CheckReport, CheckRequest, run_check
from smsnapd.engine.export import export_tar
from smsnapd.engine.history import History, SnapshotSummary
from smsnapd.engine.progress import Progress, Silent
from smsnapd.engine.restore import worklist
from smsnapd.engine.restore.run import RestoreOutcome, RestoreRequest, run_restore
from smsnapd.repository import Credentials, Repository
from smsnapd.store import Store, StoreSettings, open_store
from tests.property.observed import differences, observe

VOLUME = "notebook"
PASSPHRASE = "correct horse battery staple"
TAR = (
    *("tar", "--xattrs", "--xattrs-include=*", "--acls", "-xp", "--numeric-owner"),
    "--warning=no-timestamp",  # before 1970, in the future
)


@dataclass
class Protected:
    """A volume at `root`, backed up to `settings`. `store` stands in for the one that the URL names."""

    root: Path
    state_dir: Path
    settings: StoreSettings
    recovery_key: str = field(repr=False)
    write_key_text: str = field(repr=False)

    @classmethod
    def create(cls, root: Path, state_dir: Path, settings: StoreSettings) -> Protected:
        """Make the repository."""
        created = Repository.create(open_store(settings), PASSPHRASE)
        created.repository.close()
        return cls(root, state_dir, settings, created.recovery_key, created.write_key_text)

    @contextlib.contextmanager
    def repository(self, store: Store | None = None, *, write_key: bool = False) -> Iterator[Repository]:
        """The repository, opened anew."""
        key = {"write_key_text": self.write_key_text} if write_key else {"recovery_key": self.recovery_key}
        opened = Repository.open(store or open_store(self.settings), Credentials(**key))
        try:
            yield opened
        finally:
            opened.close()

    @property
    def workers(self) -> int | None:
        """Two, whatever the machine; the engine knows what a store in memory needs."""
        return None if self.settings.url.startswith("memory:") else 2

    def lose_state(self) -> None:
        """Lose every byte of local state."""
        shutil.rmtree(self.state_dir, ignore_errors=True)

    def backup(
        self,
        *,
        store: Store | None = None,
        progress: Progress | None = None,
        pool: bool = False,
        attach: bool = True,
        write_key: bool = True,
        **request: Any,
    ) -> BackupOutcome:
        """One run, by default as a daemon that has the write key alone.

        `pool`: by worker processes however little there is; without `attach` nothing goes into manifests.
        """
        request.setdefault("workers", self.workers)
        asked = BackupRequest(bytes(self.root), VOLUME, **{"state_dir": self.state_dir, **request})
        with contextlib.ExitStack() as stack:
            if pool:
                stack.enter_context(mock.patch.object(snapshot_module, "INLINE_BYTES", -1))
            if not attach:
                stack.enter_context(mock.patch.object(snapshot_module, "ATTACH_BYTES", 0))
            repository = stack.enter_context(self.repository(store, write_key=write_key))
            return run_backup(repository, self.settings, asked, progress or Silent())

    def restore(
        self,
        target: Path,
        snapshot: str = "latest",
        *,
        store: Store | None = None,
        pool: bool = False,
        progress: Progress | None = None,
        **request: Any,
    ) -> RestoreOutcome:
        """Bring a recovery point back."""
        request.setdefault("workers", self.workers)
        with contextlib.ExitStack() as stack:
            if pool:
                stack.enter_context(mock.patch.object(worklist, "INLINE_BYTES", -1))
            repository = stack.enter_context(self.repository(store))
            history = History.load(repository, VOLUME)
            return run_restore(
                repository,
                self.settings,
                history,
                history.find(snapshot),
                RestoreRequest(bytes(target), **request),
                progress or Silent(),
            )

    def snapshots(self) -> tuple[SnapshotSummary, ...]:
        """All recovery points."""
        with self.repository() as repository:
            return History.load(repository, VOLUME).snapshots

    def extract(self, target: Path, snapshot: str, *, options: tuple[str, ...] = ()) -> None:
        """Export a recovery point and let GNU tar extract it."""
        target.mkdir()
        archive = target.with_name(target.name + ".tar")
        with self.repository() as repository, archive.open("wb") as file:
            history = History.load(repository, VOLUME)
            size = export_tar(repository, history, history.find(snapshot), file.write, Silent())
        assert archive.stat().st_size == size
        done = subprocess.run([*TAR, *options, "-f", archive, "-C", target], capture_output=True, check=False)
        archive.unlink()
        if done.returncode or done.stderr:
            raise AssertionError(f"tar: {done.returncode} {done.stderr.decode(errors='replace')}")

    def check(
        self,
        *,
        write_key: bool = False,
        store: Store | None = None,
        expect_head: str | None = None,
        read_data: tuple[int, int] | None = (1, 1),
    ) -> CheckReport:
        """Check everything, contents included."""
        asked = CheckRequest(None, read_data, expect_head, self.state_dir)
        with self.repository(store, write_key=write_key) as repository:
            return run_check(repository, self.settings, asked, Silent())


class At(Silent):
    """Does something when a run comes to a phase."""

    def __init__(self, **actions: Callable[[], object]) -> None:
        self._actions = actions

    def phase(self, name: str, files: int | None = None, bytes: int | None = None) -> None:
        if action := self._actions.pop(name, None):
            action()


def comes_back(protected: Protected, target: str = "restored", **request: object) -> None:
    """The newest recovery point is the volume as it is now."""
    place = protected.root.with_name(target)
    protected.restore(place, **request)
    if found := differences(observe(protected.root), observe(place)):
        raise AssertionError("\n".join(found))
    shutil.rmtree(place)


def fill(root: Path, count: int, size: int, seed: int = 1) -> None:
    rng = random.Random(seed)
    for number in range(count):
        place = root / f"directory-{number % 7}" / f"file-{number}"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(rng.randbytes(size))
