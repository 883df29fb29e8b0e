"""The daemon is killed at random moments while somebody is at work, and started again each time."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from tests.fault.daemon.daily import AT_FULL_LENGTH, rest, trial
from tests.fault.daemon.workload import AtWork, now_and_then

pytestmark = [pytest.mark.root, pytest.mark.loop, pytest.mark.slow]

KILLS = 50 if AT_FULL_LENGTH else 3


@pytest.mark.parametrize("kind", ["fanotify", "inotify"])
def test_killed_again_and_again_no_recovery_point_is_wrong(place: Path, kind: str) -> None:
    chance = random.Random(3)
    with trial(place, kind, seed=11) as at:
        at.work.fill(30)
        at.daemon.start()
        begin_s = time.monotonic()
        at.settle()
        longest_s = max(4.0, 3 * (time.monotonic() - begin_s))  # on a slow machine a run takes longer
        at.daemon.kill()
        with AtWork(at.work, now_and_then) as working:
            for _ in range(KILLS):
                at.daemon.start()
                rest(chance, longest_s)
                working.check()
                at.daemon.kill()
        at.daemon.start()
        at.settle()
        at.daemon.is_whole()
        found = at.judge()
        print(found, at.work.operations)
        # How many there are between the first and the last is chance.
        assert len(found.points) > 1
