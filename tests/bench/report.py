"""The findings as Markdown: the goals, then the tables, then on what it was measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.bench.findings import Findings, Results
from tests.bench.goals import OURS, Verdict, judged
from tests.bench.meter import Taken
from tests.bench.steps import STEPS

BEGIN = "<!-- bench: `python -m tests.bench.compare --readme` writes from here -->"
END = "<!-- bench: to here -->"


def markdown(found: Findings) -> str:
    """All that was measured."""
    sections = (_goals(found), _volume(found), _tiny(found), _s3(found), _moments(found), _million(found))
    shown = ["\n".join(lines) for lines in map(list, sections) if lines]
    return "\n\n".join([*shown, "\n".join(_circumstances(found))]) + "\n"


def into_readme(readme: Path, text: str) -> None:
    """Put the text between the marks; `ValueError` if they are not there."""
    before, begin, rest = readme.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{readme} has no lines {BEGIN} and {END}")
    readme.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}")


def table(results: Results, stored: dict[str, int], steps: Sequence[str] = STEPS) -> Iterator[str]:
    """Rows: seconds, how many times as long as smsnapd each takes, and what the full cost."""
    shown = [step for step in steps if any(step in taken for taken in results.values())]
    yield f"| | {' | '.join(shown)} | CPU s | peak MiB | stored MiB |"
    yield "|---" + "|--:" * (len(shown) + 3) + "|"
    ours = results.get(OURS, {})
    for name, taken in results.items():
        cells = [_cell(taken.get(step), ours.get(step)) for step in shown]
        full = taken.get("full")
        more = [f"{full.cpu_s:.1f}", f"{full.peak_mib:.0f}"] if full else ["", ""]
        escaped = name.replace("|", "\\|")
        yield f"| {' | '.join([escaped, *cells, *more, str(stored.get(name) or '')])} |"


def _cell(taken: Taken | None, ours: Taken | None) -> str:
    if taken is None:
        return ""
    ratio = f" ({taken.wall_s / ours.wall_s:.1f}x)" if ours is not None and taken is not ours else ""
    return f"{taken.wall_s:.2f}{ratio}"


def _goals(found: Findings) -> Iterator[str]:
    rows = list(judged(found))
    if all(verdict is None for _, verdict in rows):
        return
    yield "| work | goal | measured | |"
    yield "|---|---|--:|---|"
    for goal, verdict in rows:
        measured = "" if verdict is None else verdict.measured
        yield f"| {goal.work} | {goal.aim} | {measured} | {_word(verdict)} |"


def _word(verdict: Verdict | None) -> str:
    if verdict is None:
        return "not measured"
    return "met" if verdict.is_met else "**missed**"


def _volume(found: Findings) -> Iterator[str]:
    if found.volume:
        yield (
            f"A notebook's volume of {found.names:,} names and {found.volume_mib:,} MiB, in seconds (and how "
            "many times as long as smsnapd); processor time, memory and what is stored are of the full:"
        )
        yield ""
        yield from table(found.volume, found.stored_mib)


def _tiny(found: Findings) -> Iterator[str]:
    if found.tiny:
        yield f"{found.tiny_files:,} files of under 4 KiB:"
        yield ""
        yield from table(found.tiny, found.tiny_stored_mib)


def _s3(found: Findings) -> Iterator[str]:
    if found.s3:
        yield f"SeaweedFS on the same machine, {found.s3_names:,} names and {found.s3_mib:,} MiB:"
        yield ""
        yield from table(found.s3, {})
    if found.s3 and found.ceiling:
        yield ""
    if found.ceiling:
        yield f"{found.ceiling_bytes / 1e9:.1f} GB of noise to a server that discards what it gets, over TLS:"
        yield ""
        yield "| | MB/s | CPU s/GB | peak MiB |"
        yield "|---|--:|--:|--:|"
        for name, taken in found.ceiling.items():
            rate, cost = found.ceiling_bytes / 1e6 / taken.wall_s, taken.cpu_s / (found.ceiling_bytes / 1e9)
            what = name.replace("smsnapd", "smsnapd, a full").replace("boto3", "boto3, objects of 8 MiB")
            yield f"| {what} | {rate:,.0f} | {cost:.2f} | {taken.peak_mib:.0f} |"


def _moments(found: Findings) -> Iterator[str]:
    if found.moments:
        yield "The daemon on that volume, and short commands:"
        yield ""
        yield "| | |"
        yield "|---|--:|"
        for name, value in found.moments.items():
            what, _, unit = name.rpartition(", ")
            yield f"| {what} | {_value(value, unit)} |"


def _million(found: Findings) -> Iterator[str]:
    sizes = sorted(found.million, key=int)
    if not sizes:
        return
    yield "Very many files, at two sizes:"
    yield ""
    yield f"| files | {' | '.join(f'{int(size):,}' for size in sizes)} | growth |"
    yield "|---" + "|--:" * (len(sizes) + 1) + "|"
    for name in found.million[sizes[-1]]:
        what, _, unit = name.rpartition(", ")
        values = [found.million[size].get(name, 0.0) for size in sizes]
        growth = f"{values[-1] / values[0]:.1f}x" if values[0] else ""
        yield f"| {what} | {' | '.join(_value(value, unit) for value in values)} | {growth} |"


def _value(value: float, unit: str) -> str:
    if unit == "s":
        return f"{value * 1e3:,.0f} ms" if value < 1 else f"{value:,.2f} s"
    if unit == "bytes":
        return f"{value / 1e6:,.2f} MB" if value >= 1e6 else f"{value / 1e3:,.0f} kB"
    return f"{value:,.0f} {unit}"


def _circumstances(found: Findings) -> Iterator[str]:
    machine = ", ".join(f"{name} {text}" for name, text in found.machine.items())
    yield (
        f"Measured on: {machine}; warm page cache, everything in turn in one run, each until what it wrote "
        "is on the disk (`sync -f`)."
    )
    yield f"Versions: {', '.join(f'{name} {number}' for name, number in found.programs.items())}."
    if found.absent:
        yield f"Left out, as they are not installed: {', '.join(found.absent)}."
    yield from found.notes
