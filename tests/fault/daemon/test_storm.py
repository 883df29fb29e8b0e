"""More happens than the kernel's queue of events can hold."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from smsnapd.daemon.status import seconds
from tests.fault.daemon.daily import AT_FULL_LENGTH, trial

pytestmark = [pytest.mark.root, pytest.mark.loop, pytest.mark.slow]

STEPS = 200_000 if AT_FULL_LENGTH else 50_000
PARTS = 8 if AT_FULL_LENGTH else 2


@pytest.mark.parametrize("kind", ["fanotify", "inotify"])
def test_a_storm_that_overflows_the_queue_is_told_and_mended(place: Path, kind: str) -> None:
    """The daemon gets no time of the processor in every other part of the storm: the queue must overflow."""
    with trial(place, kind, seed=7) as at:
        at.watch_with(unlimited_queue=False)
        at.work.fill(40)
        at.daemon.start()
        assert at.settle()["watcher"]["kind"] == kind
        begin_s = time.time()
        for part in range(PARTS):
            at.daemon.send(signal.SIGCONT if part % 2 else signal.SIGSTOP)
            at.work.storm(STEPS // PARTS)
        status = at.settle()
        assert status["gaps"] and all("overflowed" in gap["reason"] for gap in status["gaps"])
        assert status["watcher"]["healthy"]
        assert "events were lost" in at.daemon.log.read_text()
        at.daemon.is_whole()
        found = at.judge()
        print(found, at.work.operations, len(status["gaps"]), time.time() - begin_s)
        # The first point of after a loss is of a look at everything.
        lost_s = min(seconds(gap["time"]) for gap in status["gaps"]) - 0.5
        later = [point for point in found.points if point.begin_s > lost_s]
        assert later and later[0].method == "scan"
