"""The local index as a file: nobody else's to read, and not somewhere else."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from smsnapd.errors import SmsnapError
from smsnapd.state import State, move_state

ID = "00" * 16


def modes(directory: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}


def test_nobody_else_may_read_it_wherever_it_is_moved(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        state = State.open(tmp_path / "a", ID, "nb")
        state.journal.add([])
        assert set(modes(tmp_path / "a").values()) == {0o600}
        state.close()
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / f"{state.path.name}.new").write_bytes(b"of a move that was cut off")
        (tmp_path / "b" / f"{state.path.name}.new").chmod(0o666)
        move_state(state.path, tmp_path / "b")
    finally:
        os.umask(before)
    assert set(modes(tmp_path / "b").values()) == {0o600}
    moved = State.open(tmp_path / "b", ID, "nb")
    assert moved.head is None
    moved.close()


@pytest.mark.parametrize("suffix", ["", ".journal"])
def test_a_link_in_its_place_is_not_followed(tmp_path: Path, suffix: str) -> None:
    path = State.path_of(tmp_path, ID, "nb")
    Path(f"{path}{suffix}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises((SmsnapError, OSError), match="symbolic links"):
        state = State.open(tmp_path, ID, "nb")
        try:
            state.journal.add([])
        finally:
            state.close()
    assert not (tmp_path / "elsewhere").exists()
