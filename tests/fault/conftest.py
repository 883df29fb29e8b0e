"""Directories in memory, and small repositories in them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fault.small import Small, story


@pytest.fixture(scope="module")
def memory() -> Iterator[Path]:
    """A directory that syncs in no time."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.ismount("/dev/shm") else None) as directory:
        yield Path(directory)


@pytest.fixture
def place(memory: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=memory) as directory:
        yield Path(directory)


@pytest.fixture(scope="module")
def small(memory: Path) -> Small:
    return story(memory / "small")


@pytest.fixture(scope="module")
def other(memory: Path) -> Small:
    """The same volume in another repository."""
    return story(memory / "other")
