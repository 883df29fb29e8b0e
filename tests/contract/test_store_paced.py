"""The same suite under an upload limit that nothing reaches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from smsnapd.store import StoreSettings
from tests.contract.test_store import *  # noqa: F403


@pytest.fixture(params=["directory", pytest.param("seaweed", marks=pytest.mark.server)])
def store_settings(request: pytest.FixtureRequest, tmp_path: Path) -> StoreSettings:
    """Settings of an empty store, of every kind that has a pace."""
    settings = StoreSettings((tmp_path / "objects").as_uri())
    if request.param == "seaweed":
        make: Callable[..., StoreSettings] = request.getfixturevalue("s3_settings")
        settings = make(request.getfixturevalue("seaweed"), "ready", f"shared/paced/{tmp_path.name}")
    return replace(settings, upload_bytes_s=10**12, pace_file=str(tmp_path / "pace"))
