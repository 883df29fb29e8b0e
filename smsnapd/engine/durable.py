"""What workers have made durable, told to the chunk table at once and to the journal now and then."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Final

from smsnapd.engine.chunktable import ChunkTable
from smsnapd.errors import SmsnapError
from smsnapd.model import ChunkRef
from smsnapd.state.journal import Journal
from smsnapd.store.base import Store

log = logging.getLogger(__name__)

JOURNAL_BYTES: Final = 256 * 1024 * 1024
"""Stored bytes after which the journal learns what is durable."""


class Durable:
    """Chunks whose puts have returned, until a manifest names them."""

    def __init__(self, table: ChunkTable, store: Store, journal: Journal) -> None:
        self._table = table
        self._store = store
        self._journal = journal
        self._unjournaled: list[ChunkRef] = []

    def take(self, refs: Iterable[ChunkRef]) -> None:
        """These are durable now."""
        refs = list(refs)
        self._table.settle(refs)
        self._unjournaled += refs
        if sum(ref.stored_length for ref in self._unjournaled) >= JOURNAL_BYTES:
            self._write()

    def rescue(self, error: BaseException | None) -> None:
        """Of a run that ends with an error: journal all, so that the next one need not store it again."""
        if not isinstance(error, Exception):
            return
        try:
            self._write()
        except (SmsnapError, OSError) as second:
            # What ended the run is to be told, and not that it will cost more to run it again.
            log.info("what was stored is not in the journal: %s", second)

    def _write(self) -> None:
        if self._unjournaled:
            self._store.barrier()
            self._journal.add(self._unjournaled)
            self._unjournaled = []
