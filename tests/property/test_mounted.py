"""Random histories, mounted: every recovery point's directory is the volume as it was, and as it restores."""

from __future__ import annotations

import contextlib
import filecmp
import os
import shutil
import stat
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from smsnapd.engine.history import History
from smsnapd.engine.lookback.showing import ShownHistory, point_name
from smsnapd.repository import Credentials, Repository
from smsnapd.store import StoreSettings, open_store
from smsnapd.volume.fuse import FuseOptions, mounted
from tests.property.observed import Observed, Seen, differences, observe
from tests.property.protected import VOLUME
from tests.property.test_histories import QUIET, Round, Run

LONG = "SMSNAP_LONG" in os.environ
pytestmark = [pytest.mark.root, pytest.mark.loop, pytest.mark.slow]


def without_holes(seen: Seen) -> Seen:
    """A FUSE file system of this kind tells of holes by `st_blocks` alone, which `observe` does not ask."""
    return replace(seen, data=(), content="")


def seen_at(place: Path) -> Observed:
    return {path: without_holes(seen) for path, seen in observe(place).items()}


def same_files(shown: Path, restored: Path, moment: Observed) -> None:
    for path, seen in moment.items():
        if stat.S_ISREG(seen.kind):
            one, other = (os.path.join(bytes(place), path) for place in (shown, restored))
            assert filecmp.cmp(one, other, shallow=False), path


def look(run: Run, place: Path) -> None:
    with run.protected.repository() as repository:
        names = {name.snapshot: point_name(name) for name in History.load(repository, VOLUME).names}
    listed = set(os.listdir(bytes(place)))
    assert listed == {b"latest", *names.values()}
    assert os.readlink(bytes(place / "latest")) == names[run.moments[-1][0]]
    for snapshot, moment in run.moments:
        assert moment is not None
        shown = place / os.fsdecode(names[snapshot])
        expected = {path: without_holes(seen) for path, seen in moment.items()}
        assert differences(expected, seen_at(shown)) == []
        restored = run.directory / "restored"
        run.protected.restore(restored, snapshot)
        same_files(shown, restored, moment)
        shutil.rmtree(restored)


@settings(
    max_examples=100 if LONG else 3,
    derandomize=not LONG,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],
)
@given(history=QUIET)
def test_what_is_mounted_is_what_was(history: list[Round], new_directory: Callable[[], Path]) -> None:
    directory = new_directory()
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, directory)
        run = Run(directory, StoreSettings((directory / "repository").as_uri()))
        stack.callback(run.volume.close)
        for one in history:
            run.round(one)
        run.volume.close()
        place = directory / "mounted"
        place.mkdir()
        credentials = Credentials(recovery_key=run.protected.recovery_key)

        def show() -> ShownHistory:
            repository = Repository.open(open_store(run.protected.settings), credentials)
            return ShownHistory(repository, VOLUME, Path("/var/tmp"))

        with mounted(show, bytes(place), FuseOptions(cache_s=60.0)):
            look(run, place)


def test_names_of_points_do_not_meet() -> None:
    """Two recovery points of one second have other ids; a name sorts as its time."""
    from smsnapd.format.names import ManifestName

    ids = [uuid.uuid4().hex[:16] for _ in range(3)]
    points = [
        ManifestName("v", n + 1, 1, 1_795_726_933_000_000 + n * 600_000, "full", ids[n]) for n in range(3)
    ]
    names = [point_name(point) for point in points]
    assert len(set(names)) == 3 and names[0][:20] == names[1][:20] == b"2026-11-26T21:02:13."
    assert sorted(names) == names
