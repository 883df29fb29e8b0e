"""`smsnap prune` as a transcript: what it says, in words and in JSON, and its exit status."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smsnapd.engine.prune import Amount, PruneReport, VolumePruned
from smsnapd.errors import DamageError, LockedError
from smsnapd.store.directory import DirectoryStore

LIST = f"volumes/nb/garbage/20260101T000000000000Z-{'0' * 16}"
ORPHAN = f"volumes/nb/chunks/00/{'00' * 32}-{'11' * 16}"


@pytest.fixture
def littered(configured: Any, tmp_path: Path) -> Any:
    """A recovery point, and an object that it has nothing to do with."""
    (tmp_path / "volume" / "file").write_bytes(b"content" * 999)
    assert configured("backup").status == 0
    DirectoryStore(os.fsencode(tmp_path / "repo")).put(ORPHAN, b"x" * 5000)
    return configured


def later(monkeypatch: pytest.MonkeyPatch, hours: float) -> None:
    now = DirectoryStore.now
    monkeypatch.setattr(DirectoryStore, "now", lambda self: now(self) + hours * 3600)


def test_from_the_listing_to_the_end(littered: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = littered("prune", "--dry-run")
    assert ran.out.startswith("nb: 0 objects (0 B) would be deleted; 1 objects (4.88 KiB) would be listed")
    assert not list((tmp_path / "repo" / "volumes" / "nb").glob("garbage"))
    ran = littered("prune")
    assert ran.status == 0
    assert "; 1 objects (4.88 KiB) waiting until 20" in ran.out
    assert (tmp_path / "repo" / ORPHAN).exists()
    later(monkeypatch, 73)
    shape = littered("prune", "--json").json
    (volume,) = shape["volumes"]
    assert shape["dry_run"] is False
    assert volume == {
        "volume": "nb",
        "removed": 0,
        "recovery_points": 1,
        "sparse": {"objects": 0, "bytes": 0},
        "rewritten": 0,
        "marked": True,
        "listed": {"objects": 0, "bytes": 0},
        "deleted": {"objects": 1, "bytes": 5000},
        "waiting": {"objects": 0, "bytes": 0},
        "waiting_until": None,
        "kept_by_store": 0,
        "locks_extended": 0,
        "lock_error": None,
        "uploads_abandoned": 0,
        "may_delete": True,
        "findings": [],
        "notes": [],
        "error": None,
    }
    assert not (tmp_path / "repo" / ORPHAN).exists()
    assert littered("restore", "--target", str(tmp_path / "restored")).status == 0


def test_the_grace_is_that_of_the_configuration(
    littered: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "smsnapd.toml").open("a") as file:
        file.write('[retention]\ngrace = "1h"\n')
    littered("prune")
    later(monkeypatch, 1.1)
    assert littered("prune", "--json").json["volumes"][0]["deleted"]["objects"] == 1


def test_a_volume_that_is_not_there(littered: Any) -> None:
    ran = littered("prune", "--volume", "nobodys", "--json")
    assert (ran.status, ran.error["why"]) == (2, "the repository does not hold it")


def test_damage_is_named(littered: Any, tmp_path: Path) -> None:
    (manifest,) = (tmp_path / "repo" / "volumes" / "nb" / "manifests").iterdir()
    manifest.unlink()
    ran = littered("prune")
    assert ran.status == 13
    assert "a newest end was cut off" in ran.err and "smsnap check" in ran.err
    ran = littered("prune", "--json")
    assert ran.status == ran.json["volumes"][0]["error"]["exit_status"] == 13


@pytest.fixture
def reported(configured: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """What the verb makes of an outcome; the engine is played."""

    def run(*volumes: VolumePruned, more: tuple[str, ...] = ()) -> Any:
        monkeypatch.setattr("smsnapd.engine.prune.run_prune", lambda *_: PruneReport(volumes))
        return configured("prune", *more)

    return run


def test_everything_that_can_be_said(reported: Callable[..., Any]) -> None:
    done = VolumePruned(
        "nb",
        deleted=Amount(2, 2048),
        listed=Amount(1, 100),
        waiting=Amount(4, 4096),
        kept=3,
        uploads=2,
        may_delete=False,
        refused=((LIST, "its signature is wrong"), ("volumes/nb/manifests/x", "not folded: missing")),
        notes=("nothing may be deleted from here",),
    )
    ran = reported(done)
    assert ran.status == 13
    assert ran.out.splitlines() == [
        f"damaged: {LIST}: its signature is wrong; nothing is deleted by it",
        "damaged: volumes/nb/manifests/x: not folded: missing",
        "nb: 2 objects (2.00 KiB) deleted; 1 objects (100 B) listed; 4 objects (4.00 KiB) waiting; "
        "3 kept by the store; 2 unfinished uploads abandoned",
    ]
    assert ran.err == "smsnap: note: nb: nothing may be deleted from here\n"
    ran = reported(done, more=("-q",))
    assert len(ran.out.splitlines()) == 2 and ran.err == ""
    ran = reported(VolumePruned("nb", removed=1234, points=56), more=("--dry-run",))
    assert ran.out.startswith("nb: 1,234 recovery points would be let go, 56 stay; 0 objects (0 B) would be")


def test_the_exit_status_is_that_of_the_worst(reported: Callable[..., Any]) -> None:
    locked = VolumePruned("a", error=LockedError("write", "another writer has the lease"))
    damaged = VolumePruned("b", error=DamageError("read", "it is not there"))
    fine = VolumePruned("c")
    assert reported(fine).status == 0
    assert reported(locked, fine).status == 11
    assert reported(fine, locked, damaged).status == 13
    ran = reported()
    assert (ran.status, ran.out) == (0, "The repository holds no backup yet.\n")
    ran = reported(locked, more=("--json",))
    assert ran.json["volumes"][0]["error"]["error"] == ran.error["error"] == "LockedError"
