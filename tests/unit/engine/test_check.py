"""What `check` looks at beside the objects themselves; these are damaged one by one in tests/fault."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

import pytest

from smsnapd.engine.check import CheckRequest, run_check
from smsnapd.engine.progress import Silent
from smsnapd.errors import UsageError
from smsnapd.format import names
from smsnapd.store.memory import open_memory
from tests.property.protected import VOLUME, Protected
from tests.unit.engine.test_backup_races import as_nobody
from tests.unit.engine.test_history import backup_at, history_of


def problems(protected: Protected, **request: object) -> list[str]:
    return [finding.problem for finding in protected.check(**request).findings]


def test_a_whole_repository(protected: Protected) -> None:
    for number in range(3):
        backup_at(protected, number)
    report = protected.check()
    assert (report.findings, report.fenced, report.notes, report.snapshots, report.opened) == (
        (),
        (),
        (),
        3,
        True,
    )
    assert report.bytes_read > 0
    report = protected.check(write_key=True)
    assert (report.findings, report.opened) == ((), False)
    report = protected.check(read_data=None)
    assert (report.findings, report.opened, report.bytes_read) == ((), False, 0)


@pytest.mark.parametrize("victim", [0, 3, 7])
def test_the_parts_together_are_the_whole(protected: Protected, victim: int) -> None:
    """What is damaged in one chunk is found by one of them."""
    for number in range(8):
        (protected.root / f"file-{number}").write_bytes(os.urandom(100))
        protected.backup(attach=False)
    store = open_memory(protected.settings.url.removeprefix("memory://"))
    name = [info.name for info in store.list(names.chunks_prefix(VOLUME))][victim]
    last = store._objects[name][-1]
    store._objects[name] = store._objects[name][:-1] + bytes([last ^ 1])
    parts = [protected.check(read_data=(number, 4)) for number in (1, 2, 3, 4)]
    assert [finding.object for part in parts for finding in part.findings] == [name]
    assert sum(part.bytes_read for part in parts) == protected.check().bytes_read


def test_an_expected_head_may_be_cut_short_and_may_have_followers(protected: Protected) -> None:
    ids = [backup_at(protected, number) for number in range(3)]
    for expected in (ids[2], ids[0], ids[1][:6]):
        assert problems(protected, expect_head=expected) == []
    assert problems(protected, expect_head="0" * 16) == [
        "snapshot 0000000000000000, which was expected, is not there: a newest end was cut off"
    ]


def test_a_volume_of_which_nothing_is_left_is_missed_by_the_machine_that_made_it(
    protected: Protected,
) -> None:
    backup_at(protected, 0)
    newest = backup_at(protected, 1)
    store = open_memory(protected.settings.url.removeprefix("memory://"))
    for info in list(store.list(f"volumes/{VOLUME}/")):
        store.delete(info.name)
    assert problems(protected) == [
        f"snapshot {newest}, made from here, is not there: a newest end was cut off"
    ]
    protected.lose_state()
    report = protected.check()
    assert (report.findings, report.snapshots) == ((), 0)


def test_a_volume_that_nobody_knows_is_not_said_to_be_whole(protected: Protected) -> None:
    backup_at(protected, 0)
    with protected.repository() as repository:
        for volume, known in ((VOLUME, True), ("typo", False)):
            request = CheckRequest(volume, None, None, protected.state_dir)
            with contextlib.nullcontext() if known else pytest.raises(UsageError, match=VOLUME):
                assert run_check(repository, protected.settings, request, Silent()).snapshots == 1


def test_without_local_state_it_says_what_it_cannot_know(protected: Protected) -> None:
    backup_at(protected, 0)
    protected.lose_state()
    (note,) = protected.check().notes
    assert "--expect-head" in note


@pytest.mark.root
def test_local_state_of_another_user_is_no_obstacle(on_disk: Protected, tmp_path: Path) -> None:
    backup_at(on_disk, 0)
    for place in (tmp_path / "repository", *(tmp_path / "repository").rglob("*")):
        place.chmod(0o755 if place.is_dir() else 0o644)
    for above in tmp_path.parents:
        if above != Path("/") and above.stat().st_mode & 0o5 != 0o5:
            above.chmod(above.stat().st_mode | 0o5)
    tmp_path.chmod(0o755)
    report = as_nobody(on_disk.check)
    assert report.findings == ()
    assert report.notes


def test_a_damaged_catalog_is_named_and_not_only_the_snapshot(protected: Protected) -> None:
    protected.backup(attach=False)
    store = open_memory(protected.settings.url.removeprefix("memory://"))
    (catalog,) = [info.name for info in store.list(names.catalogs_prefix(VOLUME))]
    store._objects[catalog] = store._objects[catalog][:-1] + b"?"
    (finding,) = protected.check(read_data=None).findings
    assert finding.object == history_of(protected).names[0].object_name()
    assert catalog in finding.problem


def test_names_that_are_none_are_noted(protected: Protected) -> None:
    backup_at(protected, 0)
    store = open_memory(protected.settings.url.removeprefix("memory://"))
    store.put(f"volumes/{VOLUME}/manifests/notes.txt", b"not ours")
    report = protected.check()
    assert report.findings == ()
    assert "notes.txt" in report.notes[0]


def test_a_fenced_manifest_is_listed_and_counts_for_nothing(protected: Protected, tmp_path: Path) -> None:
    """Two writers, of which one slept: its manifest has the same sequence number and a lower generation."""
    backup_at(protected, 0)
    backup_at(protected, 1)
    store = open_memory(protected.settings.url.removeprefix("memory://"))
    fenced = history_of(protected).names[1].object_name()
    content = store.get(fenced)
    store.delete(fenced)
    shutil.rmtree(protected.state_dir)
    after = backup_at(protected, 2)
    store.put(fenced, content)
    report = protected.check()
    assert (report.findings, report.fenced, report.snapshots) == ((), (fenced,), 2)
    assert history_of(protected).find("latest").id == after
    protected.restore(tmp_path / "target")
    assert (tmp_path / "target" / "file").read_text().startswith("2 ")
