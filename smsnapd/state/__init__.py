"""The local index: what the last commit saw, so that the next run reads only what changed.

A cache in SQLite. Losing it costs one scan, never data; it is used only while the head it
remembers is the repository's and the volume is the one it was made from. It holds names, so its file
is 0600. Extents in it name chunks by the row ids of its own `chunk` table.
"""

from __future__ import annotations

import os
import secrets
import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple
from zlib import crc32

import msgspec

from smsnapd.errors import SmsnapError
from smsnapd.model import ChunkRef, Entry, Flag, Kind, Listing, directory_key, join_path
from smsnapd.state.journal import Journal as Journal
from smsnapd.state.journal import checked, with_check
from smsnapd.volume.sight import stamp_of

SCHEMA_VERSION: Final = 4
_ALIAS: Final = int(Flag.ALIAS)
_REGULAR: Final = int(Kind.REGULAR)
_UNSETTLED: Final = int(Flag.UNSETTLED | Flag.CHANGED)
_SINGLE: Final = (int(Kind.DIRECTORY), int(Kind.TOMBSTONE))
SUFFIXES: Final = ("", "-wal", "-shm", ".journal", ".image")
ROWS_AT_ONCE: Final = 512
LOCK_TIMEOUT_S: Final = 10.0
SCHEMA: Final = """
CREATE TABLE meta(key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE directory(key BLOB PRIMARY KEY, path BLOB NOT NULL, entries BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE stamp(key BLOB PRIMARY KEY, names INTEGER, stamp BLOB, crc INTEGER) WITHOUT ROWID;
CREATE TABLE chunk(id INTEGER PRIMARY KEY, name_hash BLOB NOT NULL, ref BLOB NOT NULL, uses INTEGER NOT NULL);
CREATE TABLE unsettled(directory BLOB, path BLOB, PRIMARY KEY(directory, path)) WITHOUT ROWID;
CREATE TABLE link(inode INTEGER, path BLOB, PRIMARY KEY(inode, path)) WITHOUT ROWID;
"""


class Head(msgspec.Struct, frozen=True):
    """The commit that the index mirrors, as often as it was rewritten, and the volume it was read from."""

    snapshot: str
    sequence: int
    manifest_hash: bytes
    root: bytes
    filesystem: str
    rewrites: int = 0


class TreeCounts(NamedTuple):
    """The size of a whole tree: names, regular files (each name of an inode counted), bytes."""

    entries: int
    files: int
    bytes: int


class Stamped(NamedTuple):
    """A directory that the index knows, how many names it has in it, and their stamp, b"" if none."""

    directory: bytes
    names: int
    stamp: bytes


class State:
    """One volume's index. Not safe for several threads."""

    def __init__(self, path: Path) -> None:
        self._db = _connect(path)
        # Reads see the last commit, also while an update is being written (WAL).
        self._reader = _connect(path)
        self.path = path
        self.journal = Journal(Path(f"{path}.journal"))
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode_entries = msgspec.msgpack.Decoder(list[Entry]).decode
        self._decode_ref = msgspec.msgpack.Decoder(ChunkRef).decode

    @staticmethod
    def path_of(directory: Path, repository_id: str, volume: str) -> Path:
        """The file of a volume's index."""
        return directory / f"{repository_id[:16]}-{volume}.db"

    @staticmethod
    def volumes_in(directory: Path, repository_id: str) -> list[str]:
        """The volumes of a repository that have an index below `directory`."""
        prefix = f"{repository_id[:16]}-"
        return sorted(path.name[len(prefix) : -len(".db")] for path in directory.glob(f"{prefix}*.db"))

    @classmethod
    def open(cls, directory: Path, repository_id: str, volume: str) -> State:
        """Open or make the index below `directory`. A damaged or older one is made anew."""
        path = cls.path_of(directory, repository_id, volume)
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                return cls._prepared(path)
            except sqlite3.DatabaseError as error:
                if not is_damage(error):
                    raise
                _remove(path)
                return cls._prepared(path)
        except (OSError, sqlite3.Error) as error:
            raise SmsnapError(
                f"open the local state {path}",
                str(error),
                "set [state] dir to a directory that you may write to",
            ) from error

    @classmethod
    def _prepared(cls, path: Path) -> State:
        state = cls(path)
        try:
            state._prepare()
        except BaseException:
            state.close()
            raise
        return state

    def close(self) -> None:
        """Close the file; an update that was not committed is forgotten."""
        self._db.close()
        self._reader.close()

    def remove(self) -> None:
        """Close and delete the file and its journal."""
        self.close()
        _remove(self.path)

    def _prepare(self) -> None:
        if self._db.execute("PRAGMA user_version").fetchone()[0] == SCHEMA_VERSION:
            for key in ("digest_key", "head", "newest"):
                self._meta(key)
            return
        if self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            raise sqlite3.DatabaseError("another schema")
        with self._transaction():
            for statement in SCHEMA.strip().splitlines():
                self._db.execute(statement)
            self._put_meta("digest_key", secrets.token_bytes(32))
            self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def _put_meta(self, key: str, value: bytes) -> None:
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, with_check(value)))

    def _meta(self, key: str) -> bytes | None:
        row = self._reader.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else bytes(checked(row[0]))

    @property
    def digest_key(self) -> bytes:
        """The key of the digests in `Entry.digest`; it never leaves this file."""
        return self._meta("digest_key") or b"\0" * 32

    @property
    def head(self) -> Head | None:
        """The commit that the index mirrors, or None."""
        raw = self._meta("head")
        return None if raw is None else msgspec.msgpack.decode(raw, type=Head)

    @property
    def rewrites(self) -> int:
        """How often what it names had been written anew when the index was made."""
        return self.head.rewrites if self.head else 0

    @property
    def newest_seen(self) -> tuple[int, str] | None:
        """Sequence and id of the newest snapshot ever committed from here: a cut-off end shows by it."""
        raw = self._meta("newest")
        return None if raw is None else msgspec.msgpack.decode(raw, type=tuple[int, str])

    @property
    def is_scanned(self) -> bool:
        """Whether all of the volume was held against the index since that was made from catalogs."""
        return self._meta("scanned") == b"\1"

    @property
    def is_bare(self) -> bool:
        """Whether entries may have no extents: the chain begins with an image, in which the files are."""
        return self._meta("bare") == b"\1"

    @property
    def left_out(self) -> bytes | None:
        """What the last commit left out on purpose, as `StateUpdate.commit` was told."""
        return self._meta("left_out")

    @property
    def counts(self) -> TreeCounts:
        """The size of the tree at the head."""
        raw = self._meta("counts")
        if raw is not None:
            return msgspec.msgpack.decode(raw, type=TreeCounts)
        counter = _Counter(TreeCounts(0, 0, 0))
        for listing in self.listings():
            counter.add(listing.entries, 1)
        return counter.counts

    def unsettled(self) -> list[bytes]:
        """The paths of the entries that the next run must read again, whatever stat says."""
        return [bytes(row[0]) for row in self._reader.execute("SELECT path FROM unsettled")]

    def listings(self, below: bytes = b"") -> Iterator[Listing]:
        """All entries of a directory and what is below it, in catalog order."""
        if below:
            # Keys below a directory's are its own, a NUL and more; 0x01 is what comes after NUL.
            key = directory_key(below)
            where = "WHERE key = ? OR (key >= ? AND key < ?)"
            bounds: tuple[bytes, ...] = (key, key + b"\0", key + b"\1")
        else:
            where, bounds = "", ()
        rows = self._reader.execute(f"SELECT path, entries FROM directory {where} ORDER BY key", bounds)
        decode = self._decode_entries
        for path, entries in rows:
            yield Listing(path, decode(checked(entries)))

    def stamps(self) -> Iterator[Stamped]:
        """All directories, in catalog order, with what a sight of one must be for it to be unchanged.

        One with an entry to be read again has none. The check is a cheap one: a stamp that was garbled is
        that of no sight, so this is for the directories alone.
        """
        rows = self._reader.execute("SELECT key, names, stamp, crc FROM stamp ORDER BY key")
        for key, names, stamp, crc in rows:
            if crc32(key) != crc:
                raise sqlite3.DatabaseError("a row is damaged")
            # NUL is in no name: each stands for a slash.
            yield Stamped(key.replace(b"\0", b"/"), names, stamp)

    def listing(self, directory: bytes) -> list[Entry]:
        """The entries of one directory; empty if it is not known."""
        key = directory_key(directory)
        row = self._reader.execute("SELECT entries FROM directory WHERE key = ?", (key,)).fetchone()
        return [] if row is None else self._decode_entries(checked(row[0]))

    def entry(self, path: bytes) -> Entry | None:
        """The entry at `path`, or None."""
        directory, _, name = path.rpartition(b"/")
        return next((entry for entry in self.listing(directory) if entry.name == name), None)

    def names_of(self, inode: int) -> list[bytes]:
        """The paths of an inode with several names."""
        rows = self._reader.execute("SELECT path FROM link WHERE inode = ?", (_signed(inode),))
        return [bytes(row[0]) for row in rows]

    def chunks(self) -> dict[int, ChunkRef]:
        """The chunk table, by its ids: every chunk that entries name, and none that they did once.

        What no entry of the head names a prune may delete; what one names a manifest that counts refers to.
        """
        rows = self._reader.execute("SELECT id, ref FROM chunk")
        return {number: self._decode_ref(checked(ref)) for number, ref in rows}

    def chunks_by_number(self, numbers: Iterable[int]) -> dict[int, ChunkRef]:
        """Some rows of the chunk table."""
        query = "SELECT ref FROM chunk WHERE id = ?"
        rows = {number: self._reader.execute(query, (number,)).fetchone() for number in numbers}
        return {number: self._decode_ref(checked(row[0])) for number, row in rows.items()}

    def forget(self) -> None:
        """Drop the index, keeping what is known of the newest snapshot."""
        with self._transaction():
            self._clear()
            self._db.execute("DELETE FROM meta WHERE key IN ('head', 'counts', 'bare', 'left_out')")

    def _clear(self) -> None:
        for table in ("directory", "stamp", "chunk", "link", "unsettled"):
            self._db.execute(f"DELETE FROM {table}")

    @contextmanager
    def update(self, *, anew: bool) -> Iterator[StateUpdate]:
        """One transaction that takes the index to a new head; `anew` begins with an empty one.

        Nothing is kept unless `StateUpdate.commit` was called.
        """
        self._db.execute("BEGIN IMMEDIATE")
        try:
            if anew:
                self._clear()
            update = StateUpdate(self, TreeCounts(0, 0, 0) if anew else self.counts)
            yield update
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT" if update.committed else "ROLLBACK")


class _Counter:
    """Counts a tree, listing by listing."""

    def __init__(self, counts: TreeCounts) -> None:
        self._entries, self._files, self._bytes = counts

    def add(self, entries: list[Entry], sign: int) -> None:
        """Count these in (1) or out (-1)."""
        sizes = [entry.size for entry in entries if entry.kind == _REGULAR]
        self._entries += sign * len(entries)
        self._files += sign * len(sizes)
        self._bytes += sign * sum(sizes)

    @property
    def counts(self) -> TreeCounts:
        return TreeCounts(self._entries, self._files, self._bytes)


class StateUpdate:
    """An open transaction on a `State`, which holds a tree of the size `counts` when it begins."""

    def __init__(self, state: State, counts: TreeCounts) -> None:
        self._state = state
        self._counter = _Counter(counts)
        self._db = state._db
        self._encode = state._encode
        self._rows: list[tuple[bytes, bytes, bytes]] = []
        self._stamps: list[tuple[bytes, int, bytes, int]] = []
        self._uses: Counter[int] = Counter()
        self.committed = False

    def put(self, listing: Listing, before: list[Entry] | None = None) -> None:
        """Replace a directory's entries; `before` are those that the index has for it, if any."""
        directory, entries = listing
        key = directory_key(directory)
        self._counter.add(entries, 1)
        self._uses.update(_chunks_of(entries))
        if before:
            self._counter.add(before, -1)
            self._uses.subtract(_chunks_of(before))
            self._unlink(directory, before)
            if any(entry.flags & _UNSETTLED for entry in before):
                self._db.execute("DELETE FROM unsettled WHERE directory = ?", (directory,))
        unsettled = self._note_unsettled(directory, entries)
        if entries:
            stamp = b"" if unsettled else stamp_of(entries)
            self._stamps.append((key, len(entries), stamp, crc32(key)))
            self._rows.append((key, directory, with_check(self._encode(entries))))
            if len(self._rows) >= ROWS_AT_ONCE:
                self._flush()
            self._link(directory, entries)
        else:
            self._db.execute("DELETE FROM directory WHERE key = ?", (key,))
            self._db.execute("DELETE FROM stamp WHERE key = ?", (key,))

    def _note_unsettled(self, directory: bytes, entries: list[Entry]) -> bool:
        """Take note of what is to be read again; whether that is anything."""
        rows = [(directory, join_path(directory, e.name)) for e in entries if e.flags & _UNSETTLED]
        if rows:
            self._db.executemany("INSERT OR REPLACE INTO unsettled VALUES (?, ?)", rows)
        return bool(rows)

    def _flush(self) -> None:
        self._db.executemany("INSERT OR REPLACE INTO directory VALUES (?, ?, ?)", self._rows)
        self._db.executemany("INSERT OR REPLACE INTO stamp VALUES (?, ?, ?, ?)", self._stamps)
        self._rows.clear()
        self._stamps.clear()

    def _unlink(self, directory: bytes, entries: list[Entry]) -> None:
        rows = [(_signed(e.inode), join_path(directory, e.name)) for e in entries if has_names(e)]
        if rows:
            self._db.executemany("DELETE FROM link WHERE inode = ? AND path = ?", rows)

    def _link(self, directory: bytes, entries: list[Entry]) -> None:
        several = [entry for entry in entries if entry.links > 1]
        rows = [(_signed(e.inode), join_path(directory, e.name)) for e in several if has_names(e)]
        if rows:
            self._db.executemany("INSERT OR REPLACE INTO link VALUES (?, ?)", rows)

    def put_chunks(self, refs: dict[int, ChunkRef]) -> None:
        """Add rows to the chunk table; of those that no entry names nothing stays."""
        self._db.executemany(
            "INSERT INTO chunk VALUES (?, ?, ?, 0) ON CONFLICT(id) DO UPDATE SET ref = excluded.ref",
            [(number, ref.name_hash, with_check(self._encode(ref))) for number, ref in refs.items()],
        )
        self._uses.update(dict.fromkeys(refs, 0))

    def _count_uses(self) -> None:
        """Tell the chunk table by how many extents more or fewer each is named."""
        changed = [(uses, number) for number, uses in self._uses.items()]
        self._db.executemany("UPDATE chunk SET uses = uses + ? WHERE id = ?", changed)
        numbers = [(number,) for number in self._uses]
        self._db.executemany("DELETE FROM chunk WHERE id = ? AND uses <= 0", numbers)
        self._uses.clear()

    @property
    def counts(self) -> TreeCounts:
        """The size of the tree as it is with all that was put."""
        return self._counter.counts

    def commit(
        self, head: Head, *, scanned: bool = True, bare: bool | None = None, left_out: bytes = b""
    ) -> None:
        """Keep everything: the index mirrors `head` from now on.

        Not `scanned`: the volume has not been held against it. `bare` as `State.is_bare`; None is as before.
        `left_out` is for whoever made the commit.
        """
        self._flush()
        self._count_uses()
        if bare is not None:
            self._state._put_meta("bare", b"\1" if bare else b"\0")
        self._state._put_meta("counts", msgspec.msgpack.encode(self.counts))
        self._state._put_meta("scanned", b"\1" if scanned else b"\0")
        self._state._put_meta("left_out", left_out)
        self._state._put_meta("head", msgspec.msgpack.encode(head))
        newest = self._state.newest_seen
        if newest is None or head.sequence >= newest[0]:
            self._state._put_meta("newest", msgspec.msgpack.encode((head.sequence, head.snapshot)))
        self.committed = True


def _chunks_of(entries: list[Entry]) -> list[int]:
    """The chunk of each extent."""
    headers = [entry.header.chunk for entry in entries if entry.header]
    return headers + [extent.chunk for entry in entries for extent in entry.content]


def has_names(entry: Entry) -> bool:
    """Whether an entry's inode has several names that must be recorded together."""
    return entry.links > 1 and entry.kind not in _SINGLE


def is_alias(entry: Entry) -> bool:
    """Whether an entry is a further name of an earlier entry's inode."""
    return bool(entry.flags & _ALIAS)


def _signed(inode: int) -> int:
    """SQLite's integers are signed; inode numbers are not."""
    return inode - (1 << 64) if inode >= 1 << 63 else inode


def _connect(path: Path) -> sqlite3.Connection:
    # Made here, for its mode, which SQLite then gives to its other files; and where no link leads elsewhere.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=LOCK_TIMEOUT_S)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
    except UnicodeDecodeError as error:
        # SQLite quotes what it found in a garbled schema, and Python cannot read the message.
        connection.close()
        raise sqlite3.DatabaseError("its schema is damaged") from error
    except BaseException:
        connection.close()
        raise
    return connection


def is_damage(error: sqlite3.DatabaseError) -> bool:
    """Whether the file is not what it should be; else it is locked or out of reach, or the disk is full."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    return not isinstance(error, sqlite3.OperationalError) or code == sqlite3.SQLITE_ERROR


def move_state(path: Path, directory: Path) -> None:
    """Take the files of the index at `path`, closed, to another directory, on any file system."""
    for suffix in SUFFIXES:
        part = Path(f"{path}{suffix}")
        if part.exists():
            copy = directory / f"{part.name}.new"
            copy.unlink(missing_ok=True)
            with part.open("rb") as source, open(copy, "xb", opener=_private) as target:
                shutil.copyfileobj(source, target)
            os.replace(copy, directory / part.name)
        else:
            (directory / part.name).unlink(missing_ok=True)


def _private(path: str, flags: int) -> int:
    """Open a new file that nobody else may read, at no moment."""
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _remove(path: Path) -> None:
    for suffix in SUFFIXES:
        Path(f"{path}{suffix}").unlink(missing_ok=True)
