"""What a reader of the bucket sees of a volume, and what the command line says of damage."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from smsnapd.cli.main import main
from smsnapd.engine.history import History
from smsnapd.format import names
from smsnapd.model import ChunkRef
from tests.fault.objects.every_object import (
    MARKER,
    SORTS,
    Kept,
    flipped,
    make_protected,
    sealed_parts,
    sort_of,
    stored_objects,
)
from tests.property.protected import PASSPHRASE, VOLUME, Protected

pytestmark = [pytest.mark.root, pytest.mark.slow]


# --- who reads the bucket


def refs_of(protected: Protected) -> list[ChunkRef]:
    """All chunks and segments, with those that are attached."""
    with protected.repository() as repository:
        history = History.load(repository, VOLUME)
        manifests = [history.record(name).manifest for name in history.names]
    return [ref for manifest in manifests for ref in (*manifest.chunks, *manifest.catalog)]


def test_equal_trees_in_two_repositories_share_no_name(kept: Kept, in_memory: Path) -> None:
    """The same tree, to the nanosecond: chunks and segments of the same content."""
    found: list[list[ChunkRef]] = []
    stored: list[dict[str, bytes]] = []
    for name in ("first", "second"):
        made = replace(make_protected(in_memory / name), root=kept.protected.root)
        made.backup(workers=0)
        made.backup(workers=0, attach=False, full=True, reread=True)
        found.append(refs_of(made))
        stored.append(stored_objects(in_memory / name / "repository"))
    ours, theirs = found
    assert sorted(ref.length for ref in ours) == sorted(ref.length for ref in theirs)
    assert len({ref.name_hash for ref in ours}) > 4
    assert not {ref.name_hash for ref in ours} & {ref.name_hash for ref in theirs}
    assert not {ref.stored_hash for ref in ours} & {ref.stored_hash for ref in theirs}
    fixed = {names.REPOSITORY, names.roster_name(1), names.lease_name(VOLUME)}
    assert stored[0].keys() & stored[1].keys() == fixed


def test_no_name_and_no_content_can_be_read(kept: Kept) -> None:
    words = {MARKER, b"target-of", b"directory-", b"small-", b"something else", bytes(kept.protected.root)}
    words |= {os.path.basename(path) for truth in kept.truths.values() for path in truth if path}
    for name, data in kept.objects.items():
        assert [word for word in words if word in data or word in name.encode()] == [], name


def padme(length: int) -> int:
    """The length that Padmé pads `length` to (FORMAT.md, section 5)."""
    exponent = length.bit_length() - 1
    step = 1 << exponent - exponent.bit_length()
    return -(-length // step) * step


def test_sizes_are_padded(kept: Kept) -> None:
    sealed = [name for name in kept.objects if sort_of(name) in ("chunk", "catalog", "manifest")]
    sizes = [end - begin for name in sealed for begin, end in sealed_parts(kept.objects[name])]
    assert len(sizes) > len(sealed)
    assert [size for size in sizes if size < 4096 or size != padme(size)] == []
    assert len(set(sizes)) < len(sizes) / 2


# --- the command line


class Answer(NamedTuple):
    """Exit status, the document on standard output, the error on standard error."""

    status: int
    report: Any
    error: Any


@pytest.fixture
def smsnap(
    kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Answer]:
    """`smsnap(arguments…)`, with --json; by default with the recovery key."""
    config = tmp_path / "smsnapd.toml"
    config.write_text(
        f'[volume]\nname = "{VOLUME}"\npath = "{kept.protected.root}"\n'
        f'[repository]\nurl = "{kept.protected.settings.url}"\n'
        f'[state]\ndir = "{kept.protected.state_dir}"\n'
    )

    def run(*arguments: str, passphrase: str = kept.protected.recovery_key) -> Answer:
        monkeypatch.setenv("SMSNAP_PASSPHRASE", passphrase)
        status = main([*arguments, "--json", "-c", str(config)])
        said = capfd.readouterr()
        errors = [line for line in said.err.splitlines() if line.startswith('{"error"')]
        report = json.loads(said.out) if said.out else None
        return Answer(status, report, json.loads(errors[-1]) if errors else None)

    return run


@pytest.mark.parametrize("sort", SORTS)
def test_the_command_line_tells_damage(
    kept: Kept, sort: str, smsnap: Callable[..., Answer], target: Path
) -> None:
    name = kept.of_sort(sort)[0]
    _, snapshot = kept.reader(name)
    with kept.after({name: flipped(kept.objects[name], len(kept.objects[name]) // 3)}):
        checked = smsnap("check", "--read-data")
        restored = smsnap("restore", "--target", str(target), "--snapshot", snapshot)
    assert checked.status == 13
    if sort in ("repository", "roster"):
        assert (checked.error["error"], checked.error["exit_status"]) == ("DamageError", 13)
        assert name in checked.error["what"]
    else:
        assert checked.report["ok"] is False
        assert name in {item["object"] for item in checked.report["findings"]}
    assert (restored.status == 0) == (sort in ("keyslot", "lease"))
    if restored.report is None:
        assert (restored.status, restored.error["exit_status"]) == (13, 13)
        assert restored.error["error"] == "DamageError"
        assert not target.exists()
    else:
        assert restored.status in (0, 13)
        assert all(name in item["reason"] for item in restored.report["not_restored"])
        assert bool(restored.report["not_restored"]) == (restored.status == 13)


def test_the_command_line_tells_a_whole_repository(
    kept: Kept, smsnap: Callable[..., Answer], target: Path
) -> None:
    answer = smsnap("check", "--read-data", "--expect-head", kept.latest)
    assert (answer.status, answer.report["ok"], answer.report["findings"]) == (0, True, [])
    assert (answer.report["opened"], answer.report["objects"]) == (True, len(kept.objects) - 1)
    answer = smsnap("restore", "--target", str(target))
    assert (answer.status, answer.report["not_restored"]) == (0, [])


def test_the_command_line_tells_damaged_keyslots(kept: Kept, smsnap: Callable[..., Answer]) -> None:
    with kept.after({name: flipped(kept.objects[name], 300) for name in kept.of_sort("keyslot")}):
        answer = smsnap("check", passphrase=PASSPHRASE)
    assert (answer.status, answer.error["error"], answer.error["exit_status"]) == (13, "DamageError", 13)


def test_the_command_line_tells_an_expected_head_that_is_missing(
    kept: Kept, smsnap: Callable[..., Answer]
) -> None:
    with kept.after({kept.manifests[-1]: None}):
        answer = smsnap("check", "--expect-head", kept.latest)
    assert answer.status == 13
    assert any(kept.latest in item["problem"] for item in answer.report["findings"])
