"""Numbers for the chunks that a run stores or uses again: those of the local index, and new ones."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from smsnapd.engine.chain.sealing import Piece
from smsnapd.model import ChunkRef


class ChunkTable:
    """Chunks by number. Numbers below `first_new` are the index's own.

    `data_keys` are the ids of those whose objects exist: a chunk under another is not used again, since
    nobody could open it.
    """

    def __init__(
        self,
        committed: dict[int, ChunkRef],
        journal: Iterable[ChunkRef],
        data_keys: Collection[bytes],
    ) -> None:
        self.data_keys = set(data_keys)
        self._refs = dict(committed)
        self._numbers = {
            ref.name_hash: number for number, ref in committed.items() if ref.key_id in data_keys
        }
        self._journal = {ref.name_hash: ref for ref in journal if ref.name_hash not in self._numbers}
        self.first_new = max(committed, default=0) + 1
        self._next = self.first_new
        self.attached: dict[int, bytes] = {}

    @property
    def known(self) -> frozenset[bytes]:
        """Hashes of the chunks that need not be stored again."""
        return frozenset(self._numbers) | frozenset(self._journal)

    def reserve(self) -> int:
        """A number for a chunk that is to be made; it is used for no other, and maybe for none."""
        self._next += 1
        return self._next - 1

    def number(self, piece: Piece, reserved: int = -1) -> int:
        """The number of a chunk that a worker made, or found to be known; `reserved` if that is new."""
        number = self._numbers.get(piece.name_hash)
        if number is None:
            ref = piece.ref or self._journal[piece.name_hash]
            number = reserved if reserved >= 0 else self.reserve()
            self._numbers[piece.name_hash] = number
            self._refs[number] = ref
            if piece.sealed:
                self.attached[number] = piece.sealed
        return number

    def settle(self, refs: Iterable[ChunkRef]) -> None:
        """What was put in the end: of two workers that made one chunk, the first one's object stays."""
        for ref in refs:
            number = self._numbers.get(ref.name_hash)
            # One that goes with the manifest stays what it is, whoever has put the same contents since.
            if number is not None and number not in self.attached:
                self._refs[number] = ref

    def fresh(self, by_number: dict[int, ChunkRef]) -> dict[int, ChunkRef]:
        """Those of a manifest's chunks that the index does not have: no manifest before refers to them."""
        return {number: ref for number, ref in by_number.items() if number >= self.first_new}

    def __getitem__(self, number: int) -> ChunkRef:
        """The chunk with a number."""
        return self._refs[number]
