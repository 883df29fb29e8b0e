"""What the bench has found so far, kept in a file so that parts can be measured again and reported anew."""

from __future__ import annotations

from pathlib import Path

import msgspec

from tests.bench.meter import Taken

Results = dict[str, dict[str, Taken]]
"""By program, by step."""


class Findings(msgspec.Struct):
    """All parts; empty where a part was not measured.

    `stored_mib` and `tiny_stored_mib` are what a full put; of the ceiling the values are bytes a second
    and CPU seconds a 10^9 bytes; `moments` are seconds, MiB or bytes, as the last word of their names says.
    """

    machine: dict[str, str] = {}
    programs: dict[str, str] = {}
    absent: list[str] = []
    notes: list[str] = []
    names: int = 0
    volume_mib: int = 0
    volume: Results = {}
    stored_mib: dict[str, int] = {}
    tiny_files: int = 0
    tiny: Results = {}
    tiny_stored_mib: dict[str, int] = {}
    s3_names: int = 0
    s3_mib: int = 0
    s3: Results = {}
    ceiling_bytes: int = 0
    ceiling: dict[str, Taken] = {}
    moments: dict[str, float] = {}
    million: dict[str, dict[str, float]] = {}

    def note(self, text: str) -> None:
        """Remember what a reader of the tables must know, once."""
        if text not in self.notes:
            self.notes.append(text)


def load(path: Path | None) -> Findings:
    """Those in the file, or none yet."""
    if path is None or not path.exists():
        return Findings()
    return msgspec.json.decode(path.read_bytes(), type=Findings)


def save(findings: Findings, path: Path | None) -> None:
    """Write them all, a line."""
    if path is not None:
        path.write_bytes(msgspec.json.encode(findings) + b"\n")
