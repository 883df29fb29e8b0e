"""The store fails half of the time, in every way that a network has, while somebody is at work."""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from pathlib import Path

import pytest

from smsnapd.store import StoreSettings, open_store
from tests.e2e.daemon import PATIENCE_S
from tests.fault.daemon.daily import AT_FULL_LENGTH, Trial, trial
from tests.fault.daemon.weather import BAD, Weather
from tests.fault.daemon.workload import AtWork, now_and_then
from tests.servers import S3Server

pytestmark = [pytest.mark.root, pytest.mark.loop, pytest.mark.server, pytest.mark.slow]

LASTS_S = 3600 if os.environ.get("SMSNAP_HOUR") == "1" else 300 if AT_FULL_LENGTH else 30
GROWTH_BYTES = 40 * 1024 * 1024
AT_REST_BYTES = 150 * 1024 * 1024


def memory_of(group: int) -> int:
    """Bytes of memory that the processes of a group hold; what they share counts once."""
    held = 0
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            fields = (place / "stat").read_text().rpartition(")")[2].split()
            if int(fields[2]) == group:
                lines = (place / "smaps_rollup").read_text().splitlines()
                held += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return held


def copied(at: Trial, server: S3Server) -> StoreSettings:
    """The repository in a directory: what is restored hundreds of times is better near."""
    from_there = StoreSettings(at.notebook.url, server.region, server.endpoint, path_style=True)
    settings = StoreSettings((at.notebook.place / "copy").as_uri())
    there, here = open_store(from_there), open_store(settings)
    for info in there.list(""):
        here.put(info.name, there.get(info.name))
    there.close()
    here.close()
    return settings


def test_with_a_store_that_fails_half_of_the_time_no_recovery_point_is_wrong(
    place: Path, seaweed: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {"AWS_ACCESS_KEY_ID": seaweed.access_key, "AWS_SECRET_ACCESS_KEY": seaweed.secret_key}
    for name, value in keys.items():
        monkeypatch.setenv(name, value)
    bucket = f"weather-{os.getpid()}"
    seaweed.make_bucket(bucket)
    is_long = LASTS_S > 60
    # A silent server is given up after half a minute: for that a short trial is too short.
    kinds = [kind for kind in BAD if is_long or kind != "silent"]
    with Weather(seaweed.endpoint, 9, kinds, longest_s=20.0 if is_long else 4.0) as weather:
        more = f'region = "us-east-1"\nendpoint_url = "{weather.endpoint}"\npath_style = true'
        with trial(place, "auto", 13, f"s3://{bucket}/p", more, **keys) as at:
            at.work.fill(30)
            at.daemon.start()
            at.settle()
            memory, failing = watch(at, weather)
            weather.clear_up()
            at.settle()
            at.daemon.is_whole()
            found = at.judge(copied(at, seaweed))
            print(found, at.work.operations, weather.spells, weather.bad_s, weather.befallen)
            print(len(failing), [round(value / 2**20) for value in memory[:: max(1, len(memory) // 30)]])
            third = len(memory) // 3
            assert min(memory[-third:]) < AT_REST_BYTES
            if is_long:
                early, late = statistics.median(memory[:third]), statistics.median(memory[-third:])
                assert late <= early + GROWTH_BYTES
            assert failing and all(failing)
            assert weather.befallen and len(found.points) > 3


def watch(at: Trial, weather: Weather) -> tuple[list[int], list[str]]:
    """Let it go on for a while: the memory of the daemon and its workers, and since when it said it fails.

    Longer on a slow machine: until it has failed, and has made some points between failures.
    """
    memory: list[int] = []
    failing: list[str] = []
    points: set[str] = set()
    assert at.daemon.process is not None
    end_s = time.monotonic() + LASTS_S
    weather.begin()
    with AtWork(at.work, now_and_then) as working:
        while time.monotonic() < end_s or not failing or len(points) <= 3:
            assert time.monotonic() < end_s + PATIENCE_S, (failing, points)
            time.sleep(0.3)
            working.check()
            assert at.daemon.process.poll() is None, at.daemon.log.read_text()
            memory.append(memory_of(at.daemon.process.pid))
            status = at.status
            points.add(status["last_recovery_point"]["id"])
            if status["state"] == "failing":
                failing.append(status["last_error"]["since"])
    return memory, failing
