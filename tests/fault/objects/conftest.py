"""The repository with every sort of object, made once for each worker of a parallel run."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from smsnapd.store import open_store
from tests.fault.objects.every_object import (
    SORTS,
    Kept,
    Reading,
    Volume,
    keep,
    make_protected,
    sort_of,
    stored_objects,
)
from tests.property.observed import differences, observe
from tests.property.protected import VOLUME


@pytest.fixture(scope="session")
def in_memory() -> Iterator[Path]:
    """A directory in memory where that can be had: every run syncs, and so does every restore."""
    memory = Path("/dev/shm")
    within = memory if memory.is_mount() else None
    with tempfile.TemporaryDirectory(dir=within, prefix="damage-") as directory:
        yield Path(directory)


@pytest.fixture(scope="session")
def kept(in_memory: Path) -> Kept:
    """Made once; whole: every restore is the tree, and `check` finds nothing."""
    kept = keep(in_memory / "one")
    for reader, truth in kept.truths.items():
        store = Reading(open_store(kept.protected.settings))
        outcome = kept.restore(in_memory / "target", *reader, store=store)  # type: ignore[arg-type]
        assert (outcome.not_restored, outcome.damaged) == ((), 0)
        assert differences(truth, observe(in_memory / "target")) == []
        shutil.rmtree(in_memory / "target")
        kept.needs[reader] = store.read
        if reader[0] == VOLUME:  # what is of the second writer alone is read, and can be done without
            store.read -= {kept.of_sort("writer")[1], kept.of_sort("roster")[1]}
    report = kept.check()
    assert (report.findings, report.fenced, report.opened) == ((), (), True)
    assert {sort_of(name) for name in kept.objects} == SORTS.keys()
    return kept


@pytest.fixture
def target(in_memory: Path) -> Iterator[Path]:
    yield in_memory / "target"
    shutil.rmtree(in_memory / "target", ignore_errors=True)


@pytest.fixture(scope="session")
def twin(in_memory: Path) -> dict[str, bytes]:
    """The objects of another repository in which the same happened."""
    protected = make_protected(in_memory / "two")
    volume = Volume(protected)
    volume.first_chain()
    volume.second_chain()
    return stored_objects(in_memory / "two/repository")
