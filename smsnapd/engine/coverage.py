"""What a machine knows of the contents that its checks have read: which shares, when, and whether opened.

It lies with the local state, one file a volume: another machine has looked at other shares, and whoever has
the write key alone has opened none. Losing it makes the next checks begin with the first share.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import msgspec

log = logging.getLogger(__name__)


class Coverage(msgspec.Struct, frozen=True):
    """Of each share (1 to `shares`) when it was last read, and opened, in seconds since the epoch."""

    repository: str
    shares: int = 1
    read: dict[int, float] = {}
    opened: dict[int, float] = {}

    @property
    def read_s(self) -> float | None:
        """Since when not all was read again: the oldest share's time; None if not all was ever read."""
        return self._oldest(self.read)

    @property
    def opened_s(self) -> float | None:
        """The same of contents that were decrypted, and not only held against hashes."""
        return self._oldest(self.opened)

    def _oldest(self, times: dict[int, float]) -> float | None:
        return min(times.values()) if len(times) == self.shares else None

    def next_share(self, shares: int) -> int:
        """Which of `shares` shares is to be read next: the one that was read longest ago, or never."""
        times = self.in_shares(shares).read
        return min(range(1, shares + 1), key=lambda share: times.get(share, 0.0))

    def in_shares(self, shares: int) -> Coverage:
        """The same for another number of shares: what is known of all is known of each, and nothing else."""
        if shares == self.shares:
            return self
        read, opened = (
            {} if oldest is None else dict.fromkeys(range(1, shares + 1), oldest)
            for oldest in (self.read_s, self.opened_s)
        )
        return Coverage(self.repository, shares, read, opened)

    def after(self, share: int, shares: int, when_s: float, *, opened: bool) -> Coverage:
        """What is known when a share has been read; all in one do not change how many shares there are."""
        before = self if shares == 1 else self.in_shares(shares)
        done = range(1, before.shares + 1) if shares == 1 else (share,)
        now = dict.fromkeys(done, when_s)
        return Coverage(
            before.repository,
            before.shares,
            {**before.read, **now},
            {**before.opened, **now} if opened else before.opened,
        )


def load_coverage(state_dir: Path, volume: str) -> Coverage | None:
    """What this machine remembers of a volume; None if nothing, or nothing that can be read."""
    try:
        return msgspec.json.decode(_path(state_dir, volume).read_bytes(), type=Coverage)
    except (OSError, msgspec.MsgspecError, ValueError):
        return None


def known_coverage(state_dir: Path, volume: str, repository: str) -> Coverage:
    """The same, of this repository (its id in hex) and no other."""
    found = load_coverage(state_dir, volume)
    return found if found is not None and found.repository == repository else Coverage(repository)


def keep_coverage(state_dir: Path, volume: str, coverage: Coverage) -> None:
    """Remember it; that this failed is logged."""
    path = _path(state_dir, volume)
    new = path.with_name(f"{path.name}.new")
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        new.write_bytes(msgspec.json.encode(coverage) + b"\n")
        os.replace(new, path)
    except OSError as error:
        log.warning("%s was not kept: %s", path.name, error)


def _path(state_dir: Path, volume: str) -> Path:
    return state_dir / f"{volume}.contents"
