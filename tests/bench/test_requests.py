"""The bench of requests works, and a small delta is one PUT by the daemon."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.requests import Asked, measure, table

pytestmark = [pytest.mark.server, pytest.mark.slow]


def test_the_bench_runs(tmp_path: Path) -> None:
    found = measure(tmp_path, files=300)
    by = {(asked.work, asked.tool): asked for asked in found}
    assert len(table(found).splitlines()) == len(found) + 2
    assert by["full", "aws s3 sync"].put == 300
    assert by["full", "smsnap"].put < 12
    assert by["restore", "smsnap"].get < 30 < by["restore", "aws s3 sync"].get
    daemon = by["one file changed", "smsnapd"]
    assert (daemon.put, daemon.get, daemon.list) == (1, 1, 0)
    assert by["unchanged", "smsnapd"][2:] == Asked("", "", 0, 0, 0, 0, 0, 0)[2:]
