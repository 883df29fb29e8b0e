"""Large files: cut at fixed logical offsets, each cut a chunk of its own, read by all workers at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from msgspec.structs import replace

from smsnapd.engine.backup.storing import RangeJob
from smsnapd.format.chunker import cut_ranges
from smsnapd.model import CHUNK_TARGET, Entry, Extent, Flag, data_bytes, data_segments
from smsnapd.volume.tarball.read import ISSUE_CHANGED, PackReader

CUTS_PER_JOB: Final = 4
TRIES: Final = 3


@dataclass
class LargeFile:
    """A large file being read: `entry` is complete but for header and content, `extents` is what there is.

    `issue` is what went wrong with a range, as in `RangeRead`; of an `entry` with `Flag.CHANGED` every range
    is taken as it comes.
    """

    path: bytes
    entry: Entry
    extents: list[Extent] = field(default_factory=list)
    issue: str = ""

    def jobs(self) -> Iterator[RangeJob]:
        """What is to be done: the results belong to `take`, in this order."""
        cuts = cut_ranges(self.entry.size, data_segments(self.entry))
        for start in range(0, len(cuts), CUTS_PER_JOB):
            yield RangeJob(self.path, self.entry, cuts[start : start + CUTS_PER_JOB])

    def take(self, extents: list[Extent], issue: str) -> None:
        """What came of a job."""
        self.extents += extents
        self.issue = self.issue or issue

    @property
    def is_whole(self) -> bool:
        """Whether everything was read, once all results are there."""
        return self.issue in ("", ISSUE_CHANGED) and (not self.issue or bool(self.entry.flags & Flag.CHANGED))

    def with_content(self, entry: Entry) -> Entry:
        """`entry`, which is this file's, with where its content lies; marked if it did not hold still."""
        flags = entry.flags if self.issue else entry.flags & ~Flag.CHANGED
        return replace(entry, flags=int(flags), content=tuple(self.extents))


def inspect_large(
    reader: PackReader, path: bytes, scanned: Entry, *, restless: bool = False
) -> LargeFile | None:
    """A file as it is now; None if it is not (or not any more) a large file that can be read.

    What keeps it from being read is told when it is packed. One that is `restless` will not hold still: it is
    taken as it comes, and says so.
    """
    inspected, _ = reader.inspect(path, scanned)
    if inspected is None or data_bytes(inspected) < CHUNK_TARGET:
        return None
    if restless:
        inspected = replace(inspected, flags=inspected.flags | Flag.CHANGED)
    return LargeFile(path, inspected)
