"""A volume, and a repository in this process's memory."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from smsnapd.format.keyslot import Argon2Cost, make_keyslot
from smsnapd.store import StoreSettings
from tests.property.protected import Protected


@pytest.fixture(autouse=True)
def _cheap_keyslots(monkeypatch: pytest.MonkeyPatch) -> None:
    """What makes a passphrase dear to guess would make every test slow."""
    cheap = partial(make_keyslot, cost=Argon2Cost(memory_kib=64, iterations=1, lanes=1))
    monkeypatch.setattr("smsnapd.repository.access.make_keyslot", cheap)


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """In memory where that can be had: every run writes back all that is dirty on its file system."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_mount() else None) as directory:
        yield Path(directory)


@pytest.fixture
def protect(tmp_path: Path) -> Callable[..., Protected]:
    """`protect(url)`: the volume `tmp_path/volume` and its repository, by default one in memory."""

    def make(url: str = "") -> Protected:
        root = tmp_path / "volume"
        root.mkdir(exist_ok=True)
        settings = StoreSettings(url or f"memory://{uuid.uuid4().hex}")
        return Protected.create(root, tmp_path / "state", settings)

    return make


@pytest.fixture
def protected(protect: Callable[..., Protected]) -> Protected:
    """The volume `tmp_path/volume` and a repository in memory."""
    return protect()


@pytest.fixture
def on_disk(protect: Callable[..., Protected], tmp_path: Path) -> Protected:
    """The same, with a repository that other processes see too."""
    return protect((tmp_path / "repository").as_uri())
