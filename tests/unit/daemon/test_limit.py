"""The upload limit, from the configuration to the processes that share it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from smsnapd.config import Overrides, load
from smsnapd.daemon import protection
from smsnapd.store.base import StoreSettings


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("SMSNAP_", "STATE_DIRECTORY"))]:
        monkeypatch.delenv(name)


def settings(place: Path, limit: str, state: str = "state") -> StoreSettings:
    file = place / f"{len(list(place.iterdir()))}.toml"
    lines = ["[repository]", f'url = "{(place / "repository").as_uri()}"', f'upload_limit = "{limit}"']
    file.write_text("\n".join([*lines, "[state]", f'dir = "{state}"', ""]))
    return protection.store_settings(load(str(file), Overrides()), None)


def test_without_a_limit_nothing_is_shared(tmp_path: Path) -> None:
    without = settings(tmp_path, "")
    assert (without.upload_bytes_s, without.pace_file, without.pace_owner) == (0, "", -1)


def test_whoever_keeps_its_state_in_one_place_shares_one_line(tmp_path: Path) -> None:
    daemon, terminal = settings(tmp_path, "20MB/s"), settings(tmp_path, "500KB/s")
    assert (daemon.upload_bytes_s, terminal.upload_bytes_s) == (20_000_000, 500_000)
    assert daemon.pace_file == terminal.pace_file != ""
    assert daemon.pace_owner == os.geteuid()
    assert settings(tmp_path, "20MB/s", "elsewhere").pace_file != daemon.pace_file
    assert not Path(daemon.pace_file).exists()  # it is made by the first put
