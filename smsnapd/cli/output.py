"""Standard output: lines, tables and JSON documents; the shapes that programs rely on."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from smsnapd.cli.times import utc_text
from smsnapd.errors import SmsnapError, TargetError
from smsnapd.model import path_text
from smsnapd.telemetry.plain import plain
from smsnapd.telemetry.sizes import size_text

if TYPE_CHECKING:
    from smsnapd.engine.history import SnapshotSummary
    from smsnapd.format.manifest import Issue
    from smsnapd.store.counting import Requests


class OutputClosed(Exception):  # noqa: N818
    """Who reads standard output went away, as `| head` does."""


def line(text: str = "", *, aside: bool = False) -> None:
    """One line on standard output, or on standard error if that is taken."""
    _write(plain(text), aside=aside)


def document(value: Any, *, aside: bool = False, in_one_line: bool = False) -> None:
    """The one JSON document of a verb, or one of many, each in one line; `aside` as above, in one line."""
    _write(json.dumps(value, indent=None if aside or in_one_line else 2), aside=aside)


def array(items: Iterable[Any]) -> None:
    """A JSON document that is an array, an item a line, written while it is made."""
    _array(items)
    _write("")


def document_around(
    before: dict[str, Any], name: str, items: Iterable[Any], after: Callable[[], dict[str, Any]]
) -> None:
    """A JSON document with the member `name`, an array that is written while it is made, among others.

    `after` is asked for the members behind it when all items are written.
    """
    head = "".join(f"{json.dumps(key)}: {json.dumps(value)},\n" for key, value in before.items())
    _guarded(sys.stdout.write, f"{{\n{head}{json.dumps(name)}: ")
    _array(items)
    _write("".join(f",\n{json.dumps(key)}: {json.dumps(value)}" for key, value in after().items()) + "\n}")


def _array(items: Iterable[Any]) -> None:
    separator = "["
    for item in items:
        _guarded(sys.stdout.write, f"{separator}\n  {json.dumps(item)}")
        separator = ","
    _guarded(sys.stdout.write, "[]" if separator == "[" else "\n]")


def data(piece: memoryview | bytes | bytearray) -> None:
    """Bytes on standard output."""
    _guarded(sys.stdout.buffer.write, piece)


def flush() -> None:
    """Push out what is buffered."""
    _guarded(lambda _: sys.stdout.flush(), None)


def _write(text: str, *, aside: bool = False) -> None:
    _guarded(sys.stderr.write if aside else sys.stdout.write, text + "\n")


def _guarded(write: Callable[[Any], object], value: Any) -> None:
    try:
        write(value)
    except BrokenPipeError as error:
        raise OutputClosed from error
    except OSError as error:
        raise TargetError("write to standard output", error.strerror or str(error)) from error


def table(header: Sequence[str], rows: Sequence[Sequence[str]], right: frozenset[str] = frozenset()) -> None:
    """Rows under a header, in columns two spaces apart; those named in `right` are aligned right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        cells = [
            cell.rjust(width) if name in right else cell.ljust(width)
            for cell, width, name in zip(row, widths, header, strict=True)
        ]
        line("  ".join(cells).rstrip())


def complain(error: SmsnapError, *, as_json: bool, name: str = "") -> None:
    """Tell an error on standard error: one line and its hint, or one JSON object."""
    if as_json:
        shape = {"error": name or type(error).__name__, "what": error.what, "why": error.why}
        print(json.dumps({**shape, "hint": error.hint, "exit_status": error.exit_status}), file=sys.stderr)
        return
    print(plain(" ".join(f"smsnap: cannot {error.what}: {error.why}".split())), file=sys.stderr)
    if error.hint:
        print(f"  {plain(error.hint)}", file=sys.stderr)


def warn(text: str) -> None:
    """A sentence on standard error."""
    print(plain(f"smsnap: {text}"), file=sys.stderr)


def issue_objects(issues: Iterable[Issue]) -> list[dict[str, str]]:
    """`[{"path", "reason"}]`."""
    return [{"path": path_text(issue.path), "reason": issue.reason} for issue in issues]


def requests_object(requests: Requests) -> dict[str, int]:
    """What was asked of S3 as programs see it."""
    return msgspec.structs.asdict(requests)


def requests_text(requests: Requests) -> str:
    """What was asked of S3, for people; "" if nothing was."""
    counts = requests_object(requests)
    said = [
        f"{counts[kind]:,} {kind.upper()}"
        for kind in ("put", "get", "list", "head", "delete")
        if counts[kind]
    ]
    sizes = f"{size_text(requests.bytes_up)} up, {size_text(requests.bytes_down)} down"
    return f"{', '.join(said)}; {sizes}" if said else ""


def tell_requests(requests: Requests) -> None:
    """Say on standard error what was asked of S3, if anything was."""
    text = requests_text(requests)
    if text:
        print(f"smsnap: asked of S3: {text}", file=sys.stderr)


def snapshot_object(snapshot: SnapshotSummary) -> dict[str, Any]:
    """A snapshot as programs see it."""
    return {
        "id": snapshot.id,
        "volume": snapshot.volume,
        "time": utc_text(snapshot.time_us),
        "kind": snapshot.kind,
        "mode": snapshot.mode,
        "parent": snapshot.parent,
        "files": snapshot.files,
        "bytes": snapshot.bytes,
        "stored_bytes": snapshot.stored_bytes,
        "complete": snapshot.complete,
        "incomplete": issue_objects(snapshot.incomplete),
    }
