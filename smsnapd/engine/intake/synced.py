"""A copy of plain files, as `aws s3 sync` makes it, or `smsnap export --format files` with its sidecar.

Where the sidecar knows a file it says what metadata it has; else the object's own, under the keys of AWS
DataSync; else what is usual, and the time of the object's last change. What is in the sidecar alone comes
last.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from smsnapd.errors import DamageError
from smsnapd.model import Kind
from smsnapd.volume.archive.members import Member
from smsnapd.volume.archive.sidecar import LINE_LIMIT, parse_entry, parse_head
from smsnapd.volume.archive.stream import PIECE_BYTES, ByteSource

FILE_MODE: Final = 0o644
DIRECTORY_MODE: Final = 0o755
_TIME_MAX: Final = 2**63 - 1


@dataclass(frozen=True)
class SyncedFile:
    """One file of a copy. `key` is below its prefix; one that ends with `/` stands for a directory.

    `metadata` is what is said of it beside its contents, by the keys of AWS DataSync. `open` gives these.
    """

    key: str
    size: int
    modified_ns: int
    metadata: Mapping[str, str]
    open: Callable[[], ByteSource]
    found: Member | None = None


class SyncedCopy:
    """`Arrivals` of a copy. `owner` and `group` are whose files are that nothing is said of."""

    def __init__(self, files: Iterable[SyncedFile], sidecar: Sidecar | None, owner: int, group: int) -> None:
        self._files = files
        self._sidecar = sidecar
        self._owner = owner
        self._group = group
        self._source: ByteSource | None = None

    def __iter__(self) -> Iterator[Member]:
        for file in self._files:
            member = self._member(file)
            if member is None:
                continue
            self._source = file.open() if member.kind == Kind.REGULAR else None
            try:
                yield member
            finally:
                self._close()
        if self._sidecar is not None:
            yield from self._sidecar.left()

    def read(self, size: int) -> bytes:
        """At most `size` bytes more of the file; b"" at its end."""
        return self._source.read(size) if self._source is not None else b""

    def _close(self) -> None:
        if self._source is not None:
            self._source.close()
            self._source = None

    def _member(self, file: SyncedFile) -> Member | None:
        """What a file of the copy is; None if it is a further name, which comes when the first is there."""
        known = self._sidecar.take(file) if self._sidecar is not None else None
        if known is None:
            return file.found or self._plain(file)
        if known.is_link:
            return None
        return replace(known, size=file.size)

    def _plain(self, file: SyncedFile) -> Member:
        is_directory = file.key.endswith("/")
        said = file.metadata
        mode = _number(said.get("file-permissions", ""), 8)
        owner, group = _number(said.get("file-owner", "")), _number(said.get("file-group", ""))
        return Member(
            path=file.key.encode("utf-8", "surrogateescape"),
            kind=Kind.DIRECTORY if is_directory else Kind.REGULAR,
            is_link=False,
            mode=(DIRECTORY_MODE if is_directory else FILE_MODE) if mode is None else mode & 0o7777,
            uid=self._owner if owner is None else owner & 0xFFFFFFFF,
            gid=self._group if group is None else group & 0xFFFFFFFF,
            user=b"",
            group=b"",
            mtime_ns=_time_ns(said.get("file-mtime", ""), file.modified_ns),
            size=0 if is_directory else file.size,
            target=b"",
            rdev=0,
            xattrs=(),
            segments=None,
        )


def _number(text: str, base: int = 10) -> int | None:
    """A number that metadata has; None if it is none."""
    try:
        return int(text, base) if len(text) <= 20 else None
    except ValueError:
        return None


def _time_ns(text: str, default_ns: int) -> int:
    """A time as DataSync writes it, `<nanoseconds>ns`."""
    number = _number(text.removesuffix("ns")) if text.endswith("ns") else None
    return default_ns if number is None or abs(number) > _TIME_MAX else number


class Sidecar:
    """The entries of a sidecar, by key and in order, in a file. Close it."""

    def __init__(self, source: ByteSource, directory: Path, what: str) -> None:
        """`source` is unpacked; `directory` one on disk. DamageError if it is no sidecar."""
        handle, path = tempfile.mkstemp(prefix="import-", suffix=".sidecar", dir=directory)
        os.close(handle)
        self._what = what
        self._database = sqlite3.connect(path, isolation_level=None)
        self._database.executescript(
            "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; BEGIN;"
            "CREATE TABLE entries (number INTEGER PRIMARY KEY, key TEXT, line BLOB, taken INTEGER);"
        )
        Path(path).unlink()  # it is open: whatever ends the process leaves nothing
        lines = _lines(source, what)
        self._users, self._groups = parse_head(next(lines, b""), what)
        for line in lines:
            key, _ = parse_entry(line, what)
            self._database.execute(
                "INSERT INTO entries (key, line, taken) VALUES (?, ?, 0)",
                (key.encode("utf-8", "surrogateescape"), line),
            )
        self._database.execute("CREATE INDEX by_key ON entries (key)")

    def close(self) -> None:
        """Drop the file. May be called more than once."""
        self._database.close()

    def take(self, file: SyncedFile) -> Member | None:
        """What the sidecar says of a file of the copy; None if it does not know it, or it was changed since.

        A further name is taken for that only if the copy says of it that it is as it was.
        """
        row = self._database.execute(
            "SELECT number, line FROM entries WHERE key = ?", (file.key.encode("utf-8", "surrogateescape"),)
        ).fetchone()
        if row is None:
            return None
        member = self._named(row[1])
        changed = member.size != file.size or (
            member.is_link and _time_ns(file.metadata.get("file-mtime", ""), -1) != member.mtime_ns
        )
        if member.kind != Kind.REGULAR or (member.is_link and changed):
            self._database.execute("UPDATE entries SET taken = 1 WHERE number = ?", (row[0],))
            return None
        if not member.is_link:
            self._database.execute("UPDATE entries SET taken = 1 WHERE number = ?", (row[0],))
        return member

    def left(self) -> Iterator[Member]:
        """What the copy itself cannot carry, and files of which only the sidecar knows: these are gone."""
        for (line,) in self._database.execute("SELECT line FROM entries WHERE taken = 0 ORDER BY number"):
            member = self._named(line)
            if member.kind != Kind.REGULAR or member.is_link:
                yield member

    def _named(self, line: bytes) -> Member:
        _, member = parse_entry(line, self._what)
        return replace(member, user=self._users.get(member.uid, b""), group=self._groups.get(member.gid, b""))


def _lines(source: ByteSource, what: str) -> Iterator[bytes]:
    left = b""
    while piece := source.read(PIECE_BYTES):
        *lines, left = (left + piece).split(b"\n")
        yield from lines
        if len(left) > LINE_LIMIT:
            raise DamageError(what, "a line of it is longer than any can be")
    if left:
        raise DamageError(what, "it is cut off")
