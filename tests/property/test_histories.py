"""Random histories of a real volume: every recovery point comes back as it was, by restore and by GNU tar.

`SMSNAP_LONG=1` runs many more, other ones each time.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

from smsnapd.engine.backup.run import BackupOutcome
from smsnapd.engine.progress import Progress, Silent
from smsnapd.errors import VolumeError
from smsnapd.store import StoreSettings
from tests.property.children import run_child
from tests.property.observed import Observed, differences, observe
from tests.property.protected import Protected
from tests.property.volume_model import STEP_NAMES, Volume
from tests.servers import S3Server

LONG = "SMSNAP_LONG" in os.environ
NOBODY = 65_534
pytestmark = [pytest.mark.root, pytest.mark.loop, pytest.mark.slow]


class Commit(NamedTuple):
    """How a run is made. `lost`: without local state; `blind`: behind one by a mere user."""

    full: bool = False
    reread: bool = False
    lost: bool = False
    pool: bool = False
    attach: bool = True
    identity: bool = False
    blind: bool = False


Steps = list[tuple[str, int]]


class Round(NamedTuple):
    """Steps, and the run behind them; `during`: steps while a run of its own is under way, before that."""

    steps: Steps
    commit: Commit
    during: Steps


STEP = st.tuples(st.sampled_from(STEP_NAMES), st.integers(0, 2**32))
RARELY = st.sampled_from((False, False, False, True))
COMMITS = st.builds(
    Commit,
    full=RARELY,
    reread=RARELY,
    lost=RARELY,
    pool=RARELY,
    attach=st.booleans(),
    identity=RARELY,
    blind=st.just(False),
)
STEPS = st.lists(STEP, min_size=1, max_size=18)
QUIET = st.lists(st.builds(Round, STEPS, COMMITS, st.just([])), min_size=4, max_size=7)
BUSY = st.lists(
    st.builds(Round, STEPS, COMMITS, st.lists(STEP, min_size=2, max_size=9)), min_size=3, max_size=5
)


# Nobody but root sees trusted attributes, and their absence moves no time: they are left out here.
PLAIN_STEPS = st.lists(STEP.filter(lambda step: step[0] != "attribute"), min_size=1, max_size=18)
BLIND_COMMITS = st.builds(
    Commit,
    full=RARELY,
    reread=st.just(False),
    lost=st.just(False),
    pool=st.just(False),
    attach=st.booleans(),
    identity=st.just(False),
    blind=st.just(True),
)
BLIND = st.lists(st.builds(Round, PLAIN_STEPS, BLIND_COMMITS, st.just([])), min_size=4, max_size=6)


class Meddler(Silent):
    """Takes steps while a run is under way: between scan and storing, and at each pack that is stored."""

    def __init__(self, volume: Volume, steps: Steps) -> None:
        self._volume = volume
        self._steps = list(steps)

    def phase(self, name: str, files: int | None = None, bytes: int | None = None) -> None:
        if name in ("store", "commit"):
            self._take(len(self._steps) // 2 + 1)

    def advance(self, files: int = 0, bytes: int = 0, stored_bytes: int = 0) -> None:
        self._take(1)

    def _take(self, count: int) -> None:
        for name, seed in self._steps[:count]:
            self._volume.step(name, seed)
        del self._steps[:count]


class Run:
    """One history on one store: the volume, and what it was at each recovery point."""

    def __init__(self, directory: Path, settings_: StoreSettings) -> None:
        self.directory = directory
        root = directory / "volume"
        root.mkdir()
        self.volume = Volume(root)
        self.protected = Protected.create(root, directory / "state", settings_)
        self.moments: list[tuple[str, Observed | None]] = []

    def round(self, one: Round) -> None:
        """Live, commit, remember."""
        for name, seed in one.steps:
            self.volume.step(name, seed)
        if one.during:
            outcome = self.backup(one.commit, Meddler(self.volume, one.during))
            if outcome.snapshot is not None:
                self.moments.append((outcome.snapshot.id, None))
        if one.commit.blind:
            self.backup_half_blind(one.commit)
        moment = observe(self.protected.root)
        outcome = self.backup(one.commit)
        assert outcome.incomplete == ()
        assert differences(moment, observe(self.protected.root)) == []
        if outcome.snapshot is not None:
            assert outcome.snapshot.complete
            self.moments.append((outcome.snapshot.id, moment))
        else:
            assert not one.commit.full
            before = self.moments[-1][1]
            assert before is None or differences(before, moment) == []
            self.moments[-1] = (self.moments[-1][0], moment)

    def backup_half_blind(self, commit: Commit) -> None:
        """A run by somebody who may not read everything."""
        self.protected.state_dir.mkdir(exist_ok=True)
        for top in (self.directory / "repository", self.protected.state_dir):
            for path in (top, *top.rglob("*")):
                os.chown(path, NOBODY, NOBODY)

        def attempt() -> str:
            try:
                outcome = self.backup(commit)
            except VolumeError:
                return ""
            return outcome.snapshot.id if outcome.snapshot else ""

        if snapshot := run_child(attempt, uid=NOBODY):
            self.moments.append((snapshot, None))

    def backup(self, commit: Commit, progress: Progress | None = None) -> BackupOutcome:
        """One run."""
        if commit.lost:
            self.protected.lose_state()
        return self.protected.backup(
            full=commit.full,
            reread=commit.reread,
            pool=commit.pool,
            attach=commit.attach,
            write_key=not commit.identity,
            progress=progress,
        )

    def verify(self) -> None:
        """Every recovery point is its moment; the repository is whole."""
        assert [snapshot.id for snapshot in self.protected.snapshots()] == [name for name, _ in self.moments]
        for number, (snapshot, moment) in enumerate(self.moments):
            restored, extracted = self.directory / "restored", self.directory / "extracted"
            outcome = self.protected.restore(restored, snapshot, pool=number % 3 == 2)
            assert (outcome.not_restored, outcome.notes, outcome.damaged) == ((), (), 0)
            found = observe(restored)
            assert moment is None or differences(moment, found) == []
            self.protected.extract(extracted, snapshot)
            assert differences(found, observe(extracted)) == []
            shutil.rmtree(restored)
            shutil.rmtree(extracted)
        report = self.protected.check()
        assert (report.findings, report.opened) == ((), True)


def live(directory: Path, settings_: StoreSettings, history: list[Round]) -> None:
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, directory)
        run = Run(directory, settings_)
        stack.callback(run.volume.close)
        for one in history:
            run.round(one)
        note(
            f"{len(run.moments)} recovery points of up to {max(len(m or ()) for _, m in run.moments)} entries"
        )
        run.verify()


def histories(
    examples: int, rounds: st.SearchStrategy[list[Round]] = QUIET
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Hypothesis's settings: the same histories in each run, unless many are asked for."""
    chosen = settings(
        max_examples=examples * 25 if LONG else examples,
        derandomize=not LONG,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],  # to shrink a history of seconds takes hours
    )
    return lambda test: chosen(given(history=rounds)(test))


@histories(8)
def test_in_memory(history: list[Round], new_directory: Callable[[], Path]) -> None:
    live(new_directory(), StoreSettings(f"memory://{uuid.uuid4().hex}"), history)


@histories(10)
def test_in_a_directory(history: list[Round], new_directory: Callable[[], Path]) -> None:
    directory = new_directory()
    live(directory, StoreSettings((directory / "repository").as_uri()), history)


@pytest.mark.server
@histories(4)
def test_on_s3(
    history: list[Round],
    new_directory: Callable[[], Path],
    seaweed: S3Server,
    s3_settings: Callable[..., StoreSettings],
) -> None:
    live(new_directory(), s3_settings(seaweed, "ready", f"histories/{uuid.uuid4().hex}"), history)


@histories(10, BUSY)
def test_while_the_volume_moves(history: list[Round], new_directory: Callable[[], Path]) -> None:
    """A run that is overtaken gives a recovery point that restores; the next one misses nothing."""
    directory = new_directory()
    live(directory, StoreSettings((directory / "repository").as_uri()), history)


@histories(8, BLIND)
def test_runs_by_a_user_who_may_not_read_everything(
    history: list[Round], new_directory: Callable[[], Path]
) -> None:
    """What he cannot see stays as it was in a recovery point that restores; then root sees it all."""
    directory = new_directory()
    directory.chmod(0o777)
    live(directory, StoreSettings((directory / "repository").as_uri()), history)
