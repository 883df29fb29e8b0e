"""A real ext4 for volumes and targets, one for each worker of a parallel run."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from smsnapd.store import StoreSettings
from tests.property.protected import Protected
from tests.unit.volume.ext4 import loop_ext4


@pytest.fixture(scope="session")
def ext4(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A mounted ext4 of 4 GiB; its image lies in memory where that can be had, since every run syncs."""
    memory = Path("/dev/shm")
    within = memory if memory.is_mount() else tmp_path_factory.getbasetemp()
    with (
        tempfile.TemporaryDirectory(dir=within, prefix="ext4-") as directory,
        loop_ext4(Path(directory), "volume", size="4G") as mounted,
    ):
        Path(directory).chmod(0o755)  # for tests that are another user
        yield mounted


@pytest.fixture(scope="session")
def new_directory(ext4: Path) -> Callable[[], Path]:
    """Makes empty directories on the ext4."""
    numbers = itertools.count()

    def make() -> Path:
        directory = ext4 / f"{next(numbers)}"
        directory.mkdir()
        return directory

    return make


@pytest.fixture
def protected(new_directory: Callable[[], Path]) -> Iterator[Protected]:
    directory = new_directory()
    root = directory / "volume"
    root.mkdir()
    yield Protected.create(root, directory / "state", StoreSettings((directory / "repository").as_uri()))
    shutil.rmtree(directory)
