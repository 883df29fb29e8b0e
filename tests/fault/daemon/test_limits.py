"""Fewer inotify watches than directories."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from tests.e2e.daemon import eventually
from tests.fault.daemon.daily import Trial, trial
from tests.fault.daemon.workload import AtWork, now_and_then
from tests.unit.volume.watched import machine_wide, sysctl

pytestmark = [pytest.mark.root, pytest.mark.loop, pytest.mark.slow]

DIRECTORIES = 300
LASTS_S = 4.0
LIMITED = 'open("/proc/sys/user/max_inotify_watches", "w").write("100")\n'
ALONE = ("unshare", "--user", "--map-root-user")


def work_on(at: Trial) -> None:
    end_s = time.monotonic() + LASTS_S
    with AtWork(at.work, now_and_then) as working:
        while time.monotonic() < end_s:
            time.sleep(0.1)
            working.check()
    at.settle()
    at.daemon.is_whole()


def test_the_limit_is_raised_and_nothing_is_lost(place: Path) -> None:
    with (
        machine_wide(),
        sysctl("fs.inotify.max_user_watches", 100) as limit,
        trial(place, "inotify", seed=21) as at,
    ):
        at.work.most_paths = 3 * DIRECTORIES
        at.work.fill(DIRECTORIES)
        at.daemon.start()
        status = at.settle()
        assert status["watcher"]["healthy"] and not status["gaps"]
        # By this daemon, or by another test's that met the limit at the same moment.
        assert int(limit.read_text()) > DIRECTORIES
        work_on(at)
        # By hints or, while other tests use up watches of the same user, by scans.
        assert len(at.judge().points) > 1


def test_what_cannot_be_watched_is_scanned_at_intervals_and_said(place: Path) -> None:
    """In a user namespace of its own: its limit is nobody else's, and the machine's cannot be raised."""
    if subprocess.run([*ALONE, "true"]).returncode != 0:
        pytest.skip("needs user namespaces")
    with trial(place, "inotify", seed=22) as at:
        at.watch_with()
        *python, program = at.daemon.command
        at.daemon.command = [*ALONE, *python, LIMITED + program]
        at.work.most_paths = 3 * DIRECTORIES
        at.work.fill(DIRECTORIES)
        at.daemon.start()
        status = eventually(lambda: at.status if at.status["gaps"] else None, "a gap")
        assert f"of {DIRECTORIES + 1} directories have no inotify watch" in status["gaps"][0]["reason"]
        assert not status["watcher"]["healthy"]
        assert "a part of the volume is not watched" in at.daemon.log.read_text()
        work_on(at)
        found = at.judge()
        assert len(found.points) > 1 and not found.count("events")
