"""What workers have made durable, told to the chunk table at once and to the journal now and then."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

from smsnapd.engine.chain.chunktable import ChunkTable
from smsnapd.errors import SmsnapError
from smsnapd.model import ChunkRef
from smsnapd.state.journal import Journal
from smsnapd.store.base import Store

log = logging.getLogger(__name__)

JOURNAL_BYTES: Final = 256 * 1024 * 1024
"""Stored bytes after which the journal learns what is durable."""


class Durable:
    """Chunks whose puts have returned, until a manifest names them.

    The barrier before the journal is waited for by a thread: workers get their jobs meanwhile. What goes
    wrong there is raised by the next `take`, or by `settle`.
    """

    def __init__(self, table: ChunkTable, store: Store, journal: Journal) -> None:
        self._table = table
        self._store = store
        self._journal = journal
        self._unjournaled: list[ChunkRef] = []
        self._bytes = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._under_way: Future[None] | None = None

    def take(self, refs: Iterable[ChunkRef]) -> None:
        """These are durable when the store's next barrier returns."""
        refs = list(refs)
        self._table.settle(refs)
        self._unjournaled += refs
        self._bytes += sum(ref.stored_length for ref in refs)
        if self._bytes >= JOURNAL_BYTES and (self._under_way is None or self._under_way.done()):
            self.settle()
            self._under_way = self._thread.submit(self._write, self._taken())

    def settle(self) -> None:
        """Wait for the journal; raises what went wrong with it, or with the barrier before."""
        if self._under_way is not None:
            under_way, self._under_way = self._under_way, None
            under_way.result()

    def rescue(self, error: BaseException | None) -> None:
        """The end. If that is an error all is journaled, so that the next run need not store it again."""
        try:
            if error is None:
                self.settle()
            elif isinstance(error, Exception):
                self._rescue()
        finally:
            self._thread.shutdown()

    def _rescue(self) -> None:
        try:
            self.settle()
            self._write(self._taken())
        except (SmsnapError, OSError) as second:
            # What ended the run is to be told, and not that it will cost more to run it again.
            log.info("what was stored is not in the journal: %s", second)

    def _taken(self) -> list[ChunkRef]:
        refs, self._unjournaled, self._bytes = self._unjournaled, [], 0
        return refs

    def _write(self, refs: list[ChunkRef]) -> None:
        if refs:
            self._store.barrier()
            self._journal.add(refs)
