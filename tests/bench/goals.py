"""What was aimed at, and whether it was reached: judged from the numbers alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from tests.bench.findings import Findings, Results
from tests.bench.meter import Taken

OURS = "smsnapd"
RESTIC, SYNC = "restic", "aws s3 sync"
ARTICLE, PIPELINE = "the article: tar | pigz | openssl", "tar | zstd | openssl"
COPY = "cp -a"
CHUNK_AND_MORE = 9 << 20
"""A chunk of 8 MiB with its padding, and the manifest with the catalog of one entry."""


class Verdict(NamedTuple):
    """A goal's measured value, as text, and whether that meets it."""

    measured: str
    is_met: bool


@dataclass(frozen=True)
class Goal:
    """One line: the work, the aim, and how to tell; None if it was not measured."""

    work: str
    aim: str
    judge: Callable[[Findings], Verdict | None]


Judge = Callable[[Findings], Verdict | None]
Part = Callable[[Findings], Results]


def judged(found: Findings) -> Iterator[tuple[Goal, Verdict | None]]:
    """All goals, in the order of the table."""
    for goal in GOALS:
        yield goal, goal.judge(found)


def _times(results: Part, peer: str, step: str, least: float) -> Judge:
    """How many times as long as ours the peer takes."""

    def judge(found: Findings) -> Verdict | None:
        ours, theirs = _taken(results(found), OURS, step), _taken(results(found), peer, step)
        if ours is None or theirs is None:
            return None
        ratio = theirs.wall_s / ours.wall_s
        return Verdict(f"{ratio:.1f}x", ratio >= least)

    return judge


def _share(results: Part, peer: str, step: str, most: float) -> Judge:
    """Ours as a part of what the peer takes."""

    def judge(found: Findings) -> Verdict | None:
        ours, theirs = _taken(results(found), OURS, step), _taken(results(found), peer, step)
        if ours is None or theirs is None:
            return None
        share = ours.wall_s / theirs.wall_s
        return Verdict(f"{share:.2f}", share <= most)

    return judge


def _moment(name: str, most: float, shown: str = "{:.0f} ms", factor: float = 1e3) -> Judge:
    def judge(found: Findings) -> Verdict | None:
        value = found.moments.get(name)
        return None if value is None else Verdict(shown.format(value * factor), value <= most)

    return judge


def _million(name: str, most: float, shown: str, factor: float = 1.0) -> Judge:
    def judge(found: Findings) -> Verdict | None:
        largest = found.million.get(str(max(map(int, found.million), default=0)), {})
        value = largest.get(name)
        return None if value is None else Verdict(shown.format(value * factor), value <= most)

    return judge


def _stored(found: Findings) -> Verdict | None:
    ours, theirs = found.stored_mib.get(OURS), found.stored_mib.get(RESTIC)
    if not ours or not theirs:
        return None
    return Verdict(f"{ours / theirs:.2f}", ours / theirs <= 1.1)


def _one_byte(found: Findings) -> Verdict | None:
    ours, theirs = found.moments.get("one byte by event, s"), _taken(found.volume, RESTIC, "one byte")
    if ours is None or theirs is None:
        return None
    return Verdict(f"{theirs.wall_s / ours:.1f}x", theirs.wall_s / ours >= 15)


def _one_chunk(found: Findings) -> Verdict | None:
    size = found.moments.get("one byte by event: stored, bytes")
    return None if size is None else Verdict(f"{size / 2**20:.1f} MiB", size <= CHUNK_AND_MORE)


def _peak(found: Findings) -> Verdict | None:
    ours = _taken(found.volume, OURS, "full")
    return None if ours is None else Verdict(f"{ours.peak_mib:.0f} MiB", ours.peak_mib * 2**20 <= 300e6)


def _ceiling(found: Findings) -> Verdict | None:
    ours, boto3 = found.ceiling.get(OURS), found.ceiling.get("boto3")
    if ours is None or boto3 is None:
        return None
    share = boto3.wall_s / ours.wall_s
    return Verdict(f"{share:.0%}", share >= 0.8)


def _taken(results: Results, program: str, step: str) -> Taken | None:
    return results.get(program, {}).get(step)


def _of_volume(found: Findings) -> Results:
    return found.volume


def _of_tiny(found: Findings) -> Results:
    return found.tiny


def _of_s3(found: Findings) -> Results:
    return found.s3


GOALS = (
    Goal("full", "≥ 4x restic", _times(_of_volume, RESTIC, "full", 4)),
    Goal("", "≥ 12x the article's pipeline", _times(_of_volume, ARTICLE, "full", 12)),
    Goal("", "≥ 2.2x `tar \\| zstd -T0 \\| openssl`", _times(_of_volume, PIPELINE, "full", 2.2)),
    Goal("", "stored within 1.1 of restic's", _stored),
    Goal("full of tiny files", "≥ 7x restic", _times(_of_tiny, RESTIC, "full", 7)),
    Goal("", "level with `tar \\| zstd -T0 \\| openssl`", _times(_of_tiny, PIPELINE, "full", 1)),
    Goal("unchanged run", "from the command line ≥ 10x restic", _times(_of_volume, RESTIC, "unchanged", 10)),
    Goal("", "in the daemon ≤ 50 ms", _moment("unchanged in the daemon, s", 0.05)),
    Goal("1 % of files changed", "≥ 7x restic", _times(_of_volume, RESTIC, "1 % changed", 7)),
    Goal("one byte in 1 GiB, by event", "≥ 15x restic", _one_byte),
    Goal("", "at most one chunk stored", _one_chunk),
    Goal("restore", "≥ 2.7x restic", _times(_of_volume, RESTIC, "restore", 2.7)),
    Goal("", "≤ 0.8 of `cp -a`", _share(_of_volume, COPY, "restore", 0.8)),
    Goal("", "tiny files ≥ 5x restic", _times(_of_tiny, RESTIC, "restore", 5)),
    Goal("peak memory (PSS of all processes)", "≤ 300 MB in a full", _peak),
    Goal("", "daemon at rest ≤ 75 MB", _moment("daemon at rest, MiB", 75e6 / 2**20, "{:.0f} MiB", 1)),
    Goal("", "with 1,000,000 files ≤ 200 MB", _million("daemon at rest, MiB", 200e6 / 2**20, "{:.0f} MiB")),
    Goal(
        "1,000,000 files",
        "index built ≤ 3 s beyond the scan",
        _million("index beyond the scan, s", 3, "{:.1f} s"),
    ),
    Goal("", "compare ≤ 3 s", _million("compare, s", 3, "{:.1f} s")),
    Goal("", "catalog ≤ 10 MB", _million("catalog, bytes", 10e6, "{:.1f} MB", 1e-6)),
    Goal(
        "close to durable recovery point",
        "`quiet` + ≤ 50 ms",
        _moment("close to recovery point beyond quiet, s", 0.05, "`quiet` + {:.0f} ms"),
    ),
    Goal("to S3", "≥ 3x `aws s3 sync`", _times(_of_s3, SYNC, "full", 3)),
    Goal("", "≥ 80 % of boto3's ceiling", _ceiling),
    Goal("command start", "`--version` ≤ 0.15 s", _moment("smsnap --version, s", 0.15)),
    Goal("", "`snapshots` ≤ 0.4 s", _moment("smsnap snapshots, s", 0.4)),
)
