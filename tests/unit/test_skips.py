"""A skip in CI is a failure: tested on a run of pytest of its own, with the suite's own hooks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SUITE = """
import pytest

@pytest.fixture
def server():
    pytest.skip("no server here")

def test_skips_itself(): pytest.skip("no disk here")
@pytest.mark.skipif(True, reason="no root here")
def test_marked(): pass
def test_needs(server): pass
@pytest.mark.xfail(strict=True)
def test_expected(): assert False
def test_passes(): pass
"""

SKIPPED_MODULE = "import pytest\npytest.skip('no module here', allow_module_level=True)\n"


@pytest.mark.parametrize("ci", ["", "true"])
def test_skips_count_as_failures_in_ci(tmp_path: Path, ci: str) -> None:
    (tmp_path / "test_suite.py").write_text(SUITE)
    (tmp_path / "test_module.py").write_text(SKIPPED_MODULE)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    environment = {**os.environ, "CI": ci, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider", "-rs"]
    if ci:
        command.append("--continue-on-collection-errors")
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    last = done.stdout.splitlines()[-1]
    if not ci:
        assert done.returncode == 0, done.stdout
        assert "1 passed, 4 skipped, 1 xfailed" in last
        return
    assert done.returncode == 1, done.stdout
    assert "1 failed, 1 passed, 1 xfailed, 3 errors" in last  # a skip in setup is an error
    for reason in ("no disk here", "no root here", "no server here", "no module here"):
        assert f"a failure in CI: Skipped: {reason}" in done.stdout
