"""The tree that an archive makes, as it would be on a disk after GNU tar: kept in a file, in catalog order.

Names and inodes are apart: a further name of a file stays its name when the first one is replaced.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from smsnapd.model import Entry, Flag, Kind, Listing, directory_key

LISTING_ENTRIES: Final = 4096
"""Entries of a directory that are given out at once."""

_KNOWN_DIRECTORIES: Final = 4096
_SCHEMA: Final = """
CREATE TABLE names (directory BLOB, name BLOB, node INTEGER, PRIMARY KEY (directory, name)) WITHOUT ROWID;
CREATE TABLE nodes (id INTEGER PRIMARY KEY, kind INTEGER, links INTEGER, entry BLOB, leader BLOB);
"""
_NO_DIRECTORY: Final = "it lies in what is no directory in the archive"


class ArrivingTree:
    """Close it. The methods that place something return why they cannot, "" if they did.

    Raises `sqlite3.OperationalError` where the disk is full.
    """

    def __init__(self, directory: Path, implied: Entry) -> None:
        """`directory` is one on disk; `implied` is what a directory is like that has no member of its own."""
        handle, path = tempfile.mkstemp(prefix="import-", suffix=".sqlite", dir=directory)
        os.close(handle)
        self._database = sqlite3.connect(path, isolation_level=None)
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.executescript(_SCHEMA)
        Path(path).unlink()  # it is open: whatever ends the process leaves nothing
        self._database.execute("BEGIN")
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(Entry).decode
        self._implied = implied
        self._next = 1
        self._known: dict[bytes, None] = {}
        self._insert(b"", implied)

    def close(self) -> None:
        """Drop the file. May be called more than once."""
        self._database.close()

    # --- growing

    def refusal(self, path: bytes, kind: int) -> str:
        """Why nothing of `kind` can be placed at `path`, "" if it can; makes its directory, and room."""
        if not self._directory(path.rpartition(b"/")[0]):
            return _NO_DIRECTORY
        found = self._find(path)
        if found is None:
            return ""
        node, there = found
        if there == kind == Kind.DIRECTORY:
            return ""
        if not path:
            return "it would be the root of the volume"
        if there == Kind.DIRECTORY:
            if self._has_children(path):
                return "it would replace a directory with files in it"
            self._known.clear()
        self._unlink(path, node)
        return ""

    def place(self, path: bytes, entry: Entry) -> None:
        """Put an entry where `refusal` has made room; a directory that is there takes its metadata."""
        found = self._find(path)
        if found is None:
            self._insert(path, entry)
        else:
            self._database.execute("UPDATE nodes SET entry = ? WHERE id = ?", (self._encode(entry), found[0]))

    def link(self, path: bytes, target: bytes) -> str:
        """Make `path` a further name of what `target` names."""
        found = self._find(target)
        if found is None or found[1] == Kind.DIRECTORY:
            return "it is a further name of what is not in the archive"
        if path == target:
            return ""
        refused = self.refusal(path, found[1])
        if refused:
            return refused
        self._name(path, found[0])
        self._database.execute("UPDATE nodes SET links = links + 1 WHERE id = ?", (found[0],))
        return ""

    def _directory(self, path: bytes) -> bool:
        """Whether `path` is a directory; one that is missing is made, with those above it."""
        missing = []
        while path and path not in self._known:
            found = self._find(path)
            if found is not None:
                if found[1] != Kind.DIRECTORY:
                    return False
                self._know(path)
                break
            missing.append(path)
            path = path.rpartition(b"/")[0]
        for implied in reversed(missing):
            self._insert(implied, self._implied)
            self._know(implied)
        return True

    def _know(self, path: bytes) -> None:
        if len(self._known) >= _KNOWN_DIRECTORIES:
            self._known.clear()
        self._known[path] = None

    def _find(self, path: bytes) -> tuple[int, int] | None:
        """The node that a path names, and its kind."""
        directory, _, name = path.rpartition(b"/")
        row: tuple[int, int] | None = self._database.execute(
            "SELECT id, kind FROM names JOIN nodes ON id = node WHERE directory = ? AND name = ?",
            (directory_key(directory), name),
        ).fetchone()
        return row

    def _insert(self, path: bytes, entry: Entry) -> None:
        node = self._next
        self._next += 1
        self._database.execute(
            "INSERT INTO nodes VALUES (?, ?, 1, ?, NULL)", (node, entry.kind, self._encode(entry))
        )
        self._name(path, node)

    def _name(self, path: bytes, node: int) -> None:
        directory, _, name = path.rpartition(b"/")
        self._database.execute("INSERT INTO names VALUES (?, ?, ?)", (directory_key(directory), name, node))

    def _unlink(self, path: bytes, node: int) -> None:
        directory, _, name = path.rpartition(b"/")
        self._database.execute(
            "DELETE FROM names WHERE directory = ? AND name = ?", (directory_key(directory), name)
        )
        self._database.execute("UPDATE nodes SET links = links - 1 WHERE id = ?", (node,))
        self._database.execute("DELETE FROM nodes WHERE id = ? AND links = 0", (node,))

    def _has_children(self, path: bytes) -> bool:
        found = self._database.execute(
            "SELECT 1 FROM names WHERE directory = ? LIMIT 1", (directory_key(path),)
        ).fetchone()
        return found is not None

    # --- grown

    def listings(self) -> Iterator[Listing]:
        """All entries in catalog order, as they are to be recorded, but for their places; to be asked once.

        Inodes are numbered anew. Of several names the first leads; others are its aliases.
        """
        rows = self._database.execute(
            "SELECT directory, name, id, links, entry FROM names JOIN nodes ON id = node "
            "ORDER BY directory, name"
        )
        current, entries = b"", list[Entry]()
        for key, name, node, links, data in rows:
            if entries and (key != current or len(entries) >= LISTING_ENTRIES):
                yield Listing(current.replace(b"\0", b"/"), entries)
                entries = []
            current = key
            entry = msgspec.structs.replace(self._decode(data), name=name, inode=node, links=links)
            if links > 1:
                entry = self._in_group(key, entry)
            entries.append(entry)
        if entries:
            yield Listing(current.replace(b"\0", b"/"), entries)

    def _in_group(self, key: bytes, entry: Entry) -> Entry:
        """One name of a file with several."""
        (leader,) = self._database.execute("SELECT leader FROM nodes WHERE id = ?", (entry.inode,)).fetchone()
        if leader is None:
            directory = key.replace(b"\0", b"/")
            path = directory + b"/" + entry.name if directory else entry.name
            self._database.execute("UPDATE nodes SET leader = ? WHERE id = ?", (path, entry.inode))
            return entry
        return msgspec.structs.replace(
            entry, flags=int(Flag.ALIAS), target=leader, xattrs=(), segments=(), content=()
        )
