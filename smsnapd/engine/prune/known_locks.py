"""Until when objects are locked, as this machine has seen or said: a cache that saves a request for each.

Losing it costs one HEAD an object. It holds no names: each is 63 bits of its hash.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from pathlib import Path
from typing import Final

from blake3 import blake3

_TABLE: Final = "lock(name INTEGER PRIMARY KEY, until_s INTEGER NOT NULL)"
_LEARN: Final = "INSERT OR REPLACE INTO temp.lock VALUES (?, ?)"
_KNOW: Final = "SELECT until_s FROM {}.lock WHERE name = ?"

log = logging.getLogger(__name__)


class KnownLocks:
    """The cache in a file; without one (None), or where it cannot be used, of this process alone.

    For one thread; close it. An end that was learned holds: nothing shortens a lock but who may bypass it.
    """

    def __init__(self, path: Path | None) -> None:
        self._database = _opened(path)

    @staticmethod
    def path_of(state_dir: Path, repository_id: str, volume: str) -> Path:
        """The file for a volume's objects, beside its index."""
        return state_dir / f"{repository_id[:16]}-{volume}.locks"

    def until(self, name: str) -> float | None:
        """When the lock of an object ends, seconds since the epoch; None if that is not known."""
        for place in ("temp", "main"):
            row = self._database.execute(_KNOW.format(place), (_number(name),)).fetchone()
            if row is not None:
                return float(row[0])
        return None

    def learn(self, name: str, until_s: float) -> None:
        """This is when it ends. The file learns it in the end: others may be at work with it."""
        self._database.execute(_LEARN, (_number(name), int(until_s)))

    def close(self, now_s: float) -> None:
        """Keep what was learned, but for locks that are over: the objects may be gone."""
        try:
            with self._database:
                self._database.execute("BEGIN IMMEDIATE")
                self._database.execute("INSERT OR REPLACE INTO main.lock SELECT * FROM temp.lock")
                self._database.execute("DELETE FROM main.lock WHERE until_s < ?", (int(now_s),))
        except sqlite3.Error as error:
            log.info("the ends of locks are not remembered: %s", error)
        self._database.close()


def _opened(path: Path | None) -> sqlite3.Connection:
    if path is not None:
        try:
            return _prepared(path)
        except (OSError, sqlite3.Error) as error:
            log.info("the ends of locks are not remembered in %s: %s", path, error)
            if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
                path.unlink(missing_ok=True)  # it is damaged
    return _prepared(None)


def _prepared(path: Path | None) -> sqlite3.Connection:
    if path is not None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
    database = sqlite3.connect(path or ":memory:", isolation_level=None)
    try:
        database.execute("PRAGMA temp_store = MEMORY")
        database.execute(f"CREATE TABLE IF NOT EXISTS main.{_TABLE}")
        database.execute(f"CREATE TABLE temp.{_TABLE}")
        database.execute("SELECT max(until_s) FROM main.lock").fetchone()
    except BaseException:
        database.close()
        raise
    return database


def _number(name: str) -> int:
    return int.from_bytes(blake3(name.encode()).digest(8), "little") >> 1
