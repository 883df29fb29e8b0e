"""Somebody is at work, and everything changes while it is read."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.e2e.daemon import eventually
from tests.fault.daemon.daily import AT_FULL_LENGTH, trial
from tests.fault.daemon.workload import AtWork, now_and_then

pytestmark = [pytest.mark.root, pytest.mark.loop, pytest.mark.slow]

LASTS_S = 300 if AT_FULL_LENGTH else 10


@pytest.mark.parametrize("kind", ["fanotify", "inotify"])
def test_every_recovery_point_is_what_the_volume_was(place: Path, kind: str) -> None:
    with trial(place, kind, seed=5) as at:
        at.work.fill(30)
        at.daemon.start()
        end = time.monotonic() + LASTS_S
        with AtWork(at.work, now_and_then) as working:
            while time.monotonic() < end:
                time.sleep(0.1)
                working.check()
            eventually(lambda: working.check() or at.methods().count("events") > 1, "points by events")
        at.settle()
        at.daemon.is_whole()
        found = at.judge()
        print(found, at.work.operations)
        assert found.count("events") > 1
