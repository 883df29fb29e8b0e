"""Modules loaded beside other work are there behind it, and what is wrong with one shows where it is used."""

from __future__ import annotations

import importlib
import sys
import threading
from pathlib import Path

import pytest

from smsnapd.cli.loading import loading


def test_it_is_there_behind_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "smsnap_slow.py").write_text("import time; time.sleep(0.05); done = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    threads = set(threading.enumerate())
    with pytest.raises(KeyError), loading("smsnap_slow"):
        raise KeyError("of the work")
    assert sys.modules.pop("smsnap_slow").done
    assert set(threading.enumerate()) <= threads


def test_one_that_cannot_be_imported_says_so_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "smsnap_broken.py").write_text("import smsnap_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    with loading("smsnap_broken"):
        pass
    with pytest.raises(ModuleNotFoundError, match="smsnap_that_is_not_there"):
        importlib.import_module("smsnap_broken")
