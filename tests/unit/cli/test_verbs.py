"""What verbs make of what the engine hands back: statuses, reports, requests. The engine itself is played."""

from pathlib import Path
from typing import Any

import pytest

from smsnapd.engine.backup.request import EnvironmentRequest
from smsnapd.engine.backup.run import BackupOutcome, BackupRequest
from smsnapd.engine.check import CheckReport, CheckRequest, Finding
from smsnapd.engine.history import History, SnapshotSummary
from smsnapd.engine.restore.run import RestoreOutcome, RestoreRequest
from smsnapd.format.manifest import Issue

MISSED = (Issue(b"odd-\xff", "unreadable: Permission denied"),)
NO_REQUESTS = dict.fromkeys(("put", "get", "list", "head", "delete", "bytes_up", "bytes_down"), 0)


def summary(**more: Any) -> SnapshotSummary:
    values: dict[str, Any] = {
        "id": "0123456789abcdef",
        "volume": "nb",
        "time_us": 1_763_647_200_000_001,
        "kind": "full",
        "mode": "tar",
        "parent": None,
        "files": 3,
        "bytes": 2048,
        "stored_bytes": 4096,
        "complete": True,
        "incomplete": (),
        "sequence": 1,
    }
    return SnapshotSummary(**{**values, **more})


def backed_up(**more: Any) -> BackupOutcome:
    values: dict[str, Any] = {"snapshot": summary(), "changed": 3, "deleted": 1, "files": 3, "bytes": 2048}
    return BackupOutcome(**{**values, "new_bytes": 1024, "incomplete": (), **more})


@pytest.fixture
def played(configured, monkeypatch: pytest.MonkeyPatch):
    """`played("backup", outcome)`: the engine returns this; the list gets what it was asked."""

    def play(verb: str, outcome: object) -> list[Any]:
        asked: list[Any] = []

        def run(*arguments: Any) -> object:
            asked.append(arguments[-2])
            return outcome

        module = f"{verb}.run" if verb in ("backup", "restore") else verb
        monkeypatch.setattr(f"smsnapd.engine.{module}.run_{verb}", run)
        return asked

    return play


@pytest.fixture
def one_snapshot(monkeypatch: pytest.MonkeyPatch):
    """A history of one snapshot, whatever the repository holds."""

    def use(snapshot: SnapshotSummary) -> None:
        monkeypatch.setattr("smsnapd.repository.Repository.volumes", lambda self: ["nb"])
        monkeypatch.setattr(History, "find", lambda self, selector: snapshot)
        monkeypatch.setattr(History, "at", lambda self, time_us: snapshot)

    return use


def test_backup_asks_for_what_was_said(configured, played, tmp_path: Path) -> None:
    asked = played("backup", backed_up())
    configured("backup", "--full", "--reread", "--dry-run")
    configured("backup", "--volume", "other", "--path", "/elsewhere")
    assert asked[0] == BackupRequest(
        root=bytes(tmp_path / "volume"),
        volume="nb",
        state_dir=tmp_path / "state",
        full=True,
        reread=True,
        dry_run=True,
        environment=EnvironmentRequest(),
    )
    assert (asked[1].root, asked[1].volume, asked[1].full) == (b"/elsewhere", "other", False)


def test_backup_reports(configured, played) -> None:
    played("backup", backed_up(notes=("the state was lost",)))
    ran = configured("backup")
    assert (
        ran.out == "stored full 0123456789abcdef of nb: 3 changed, 1 deleted, 1.00 KiB new, 4.00 KiB stored\n"
    )
    assert ran.err == "smsnap: note: the state was lost\n"
    assert configured("backup", "--json").json == {
        "id": "0123456789abcdef",
        "volume": "nb",
        "time": "2025-11-20T14:00:00.000001Z",
        "kind": "full",
        "mode": "tar",
        "parent": None,
        "files": 3,
        "bytes": 2048,
        "stored_bytes": 4096,
        "complete": True,
        "incomplete": [],
        "requests": NO_REQUESTS,
    }


def test_an_incomplete_backup_is_status_3(configured, played) -> None:
    played("backup", backed_up(snapshot=summary(complete=False, incomplete=MISSED), incomplete=MISSED))
    ran = configured("backup")
    assert (ran.status, ran.err) == (3, "smsnap: missed odd-\\xff: unreadable: Permission denied\n")
    assert ran.out.endswith("; incomplete\n")
    shape = configured("backup", "--json", "-q")
    assert (shape.status, shape.json["complete"]) == (3, False)
    assert shape.json["incomplete"] == [{"path": r"odd-\xff", "reason": "unreadable: Permission denied"}]


def test_an_incomplete_run_that_had_nothing_to_store_is_status_3(configured, played) -> None:
    played("backup", backed_up(snapshot=None, incomplete=MISSED))
    assert configured("backup", "--json", "-q").status == 3


def restored(**more: Any) -> RestoreOutcome:
    values: dict[str, Any] = {"snapshot": summary(), "target": b"/t", "files": 3, "bytes": 2048}
    return RestoreOutcome(
        **{**values, "fetched_bytes": 99, "skipped": 2, "not_restored": (), "notes": (), **more}
    )


def test_restore_asks_for_what_was_said(configured, played, one_snapshot, tmp_path: Path) -> None:
    one_snapshot(summary())
    asked = played("restore", restored())
    arguments = [
        "--overwrite",
        "if-changed",
        "--delete",
        "--map-user",
        "500:1000",
        "--map-user",
        "a:b",
        "--dry-run",
    ]
    configured(
        "restore", "d/a", "./e/", r"odd-\xff", str(tmp_path / "volume" / "f"), "--target", "t", *arguments
    )
    assert asked == [
        RestoreRequest(
            target=bytes(tmp_path / "t"),
            paths=(b"d/a", b"e", b"odd-\xff", b"f"),
            overwrite="if-changed",
            delete=True,
            users=(("500", "1000"), ("a", "b")),
            dry_run=True,
            keep=(bytes(tmp_path / "state"),),
        )
    ]


def test_restore_reports(configured, played, one_snapshot, tmp_path: Path) -> None:
    one_snapshot(summary())
    played("restore", restored(notes=("owners were not set",), would=("create a",)))
    ran = configured("restore", "--target", "t")
    assert (
        ran.out
        == f"create a\nrestored 3 files, 2.00 KiB, 2 left as they were, 99 B fetched to {tmp_path}/t\n"
    )
    assert "smsnap: note: owners were not set\n" in ran.err
    shape = configured("restore", "--target", "t", "--json", "-q").json
    assert shape == {
        "snapshot": "0123456789abcdef",
        "target": f"{tmp_path}/t",
        "files": 3,
        "bytes": 2048,
        "fetched_bytes": 99,
        "skipped": 2,
        "not_restored": [],
        "notes": ["owners were not set"],
        "requests": NO_REQUESTS,
    }
    assert configured("restore", "--target", "t", "--dry-run", "--json", "-q").json["would"] == ["create a"]


@pytest.mark.parametrize(("damaged", "status"), [(0, 3), (1, 13)])
def test_what_could_not_be_restored_is_named(
    configured, played, one_snapshot, damaged: int, status: int
) -> None:
    one_snapshot(summary())
    played("restore", restored(not_restored=MISSED, damaged=damaged))
    ran = configured("restore", "--target", "t", "-q")
    assert (ran.status, ran.err) == (
        status,
        "smsnap: not restored: odd-\\xff: unreadable: Permission denied\n",
    )


def test_a_restore_says_that_the_backup_was_incomplete(configured, played, one_snapshot) -> None:
    issues = tuple(Issue(b"%d" % number, "changed while read") for number in range(7))
    one_snapshot(summary(complete=False, incomplete=issues))
    played("restore", restored())
    ran = configured("restore", "--target", "t")
    assert ran.status == 0
    assert "the backup itself is incomplete: it missed 0, 1, 2, 3, 4 and 2 more" in ran.err


def checked(**more: Any) -> CheckReport:
    values: dict[str, Any] = {"findings": (), "fenced": (), "snapshots": 2, "objects": 9, "bytes_read": 10}
    return CheckReport(**{**values, "opened": True, "notes": (), **more})


def test_check_asks_for_what_was_said(configured, played, tmp_path: Path) -> None:
    asked = played("check", checked())
    for arguments in ([], ["--read-data"], ["--read-data", "2/7"], ["--volume", "b", "--expect-head", "abc"]):
        assert configured("check", *arguments).status == 0
    state = tmp_path / "state"
    assert asked == [
        CheckRequest(None, None, None, state),
        CheckRequest(None, (1, 1), None, state),
        CheckRequest(None, (2, 7), None, state),
        CheckRequest("b", None, "abc", state),
    ]


def test_check_reports(configured, played) -> None:
    finding = Finding("volumes/nb/chunks/x", "it is missing")
    played("check", checked(findings=(finding,), fenced=("m",), notes=("no state",)))
    ran = configured("check")
    assert ran.status == 13
    assert ran.out.splitlines()[0] == "damaged: volumes/nb/chunks/x: it is missing"
    assert ran.out.splitlines()[1] == "1 damaged in 2 snapshots, 9 objects; 10 B read, contents opened"
    assert ran.err == "smsnap: note: fenced: m\nsmsnap: note: no state\n"
    assert configured("check", "--json").json == {
        "ok": False,
        "findings": [{"object": "volumes/nb/chunks/x", "problem": "it is missing"}],
        "fenced": ["m"],
        "snapshots": 2,
        "objects": 9,
        "bytes_read": 10,
        "opened": True,
        "contents": {},
        "notes": ["no state"],
        "requests": NO_REQUESTS,
    }


def test_a_listing_with_a_damaged_manifest_shows_the_rest(
    configured, monkeypatch: pytest.MonkeyPatch
) -> None:
    from smsnapd.engine.history import Damaged
    from smsnapd.errors import DamageError
    from smsnapd.format.names import ManifestName

    name = ManifestName("nb", 2, 1, 3, "incremental", "fedcba9876543210")
    damaged = Damaged(name, DamageError("read the manifest", "its bytes are not what was written"))
    monkeypatch.setattr("smsnapd.repository.Repository.volumes", lambda self: ["nb"])
    monkeypatch.setattr(History, "_opened", ((summary(),), (damaged,)))
    ran = configured("snapshots")
    assert ran.status == 13
    assert "0123456789abcdef" in ran.out
    assert ran.err == "smsnap: cannot read the manifest: its bytes are not what was written\n"
