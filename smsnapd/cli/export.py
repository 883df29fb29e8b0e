"""`smsnap export`: a snapshot as a plain tar archive."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import click

from smsnapd.cli import output
from smsnapd.cli.options import verb
from smsnapd.cli.session import Session
from smsnapd.errors import TargetError, UsageError
from smsnapd.telemetry.sizes import size_text

EXAMPLES = """
smsnap export latest --output volume.tar
smsnap export 3f9a --output - | tar -xp --acls --xattrs-include='*' -C /mnt/new
"""
REPORT = """
{"snapshot", "output", "bytes"}; on standard error if the archive goes to standard output
"""
_Write = Callable[[memoryview], object]


@verb("export", examples=EXAMPLES, report=REPORT)
@click.argument("snapshot")
@click.option(
    "--output", "destination", required=True, metavar="FILE|-", help="A new file, or - for standard output."
)
def export(snapshot: str, destination: str) -> int:
    """Write a snapshot as a plain tar archive (POSIX pax) that GNU tar extracts.

    SNAPSHOT is an id, a unique prefix of one, `latest`, `VOLUME@TIME`, or `@TIME` for this machine's
    volume. The archive is not sealed: whoever reads it reads the files. A file gets its name only
    when it is whole.
    """
    from smsnapd.engine.export import export_tar

    session = Session.current()
    if "://" in destination:
        raise UsageError(
            f"export to {destination}", "only files can be written yet", "use --output FILE or -"
        )
    with session.repository(contents=True) as repository:
        history, found = session.find(repository, snapshot)
        with _opened(destination) as write, session.progress() as progress:
            size = export_tar(repository, history, found, write, progress)
    _report(session, found.id, destination, size)
    return 0


def _opened(destination: str) -> AbstractContextManager[_Write]:
    return _standard_output() if destination == "-" else new_file(Path(destination))


@contextmanager
def _standard_output() -> Iterator[_Write]:
    if sys.stdout.isatty():
        raise UsageError(
            "write the archive to the terminal", "it is no text", "pipe it, or use --output FILE"
        )
    yield output.data
    output.flush()


@contextmanager
def new_file(path: Path) -> Iterator[_Write]:
    """A function that writes to a file which has its name, 0600, only once it is whole and durable."""
    what = f"write {path}"
    if path.exists() or path.is_symlink():
        raise UsageError(what, "it exists, and nothing is overwritten", "remove it, or name another file")
    try:
        descriptor, temporary = tempfile.mkstemp(
            prefix=f".{path.name[:200]}.", suffix=".part", dir=path.parent
        )
    except OSError as error:
        raise TargetError(
            what, error.strerror or str(error), "choose a directory that can be written"
        ) from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield _translated(file.write, what)
            _translated(lambda _: file.flush(), what)(memoryview(b""))
            os.fsync(file.fileno())
        os.link(temporary, path)
    except OSError as error:
        raise TargetError(what, error.strerror or str(error)) from error
    finally:
        os.unlink(temporary)


def _translated(write: Callable[[memoryview], object], what: str) -> _Write:
    def checked(piece: memoryview) -> None:
        try:
            write(piece)
        except OSError as error:
            hint = "make room, or choose another place"
            raise TargetError(what, error.strerror or str(error), hint) from error

    return checked


def _report(session: Session, snapshot: str, destination: str, size: int) -> None:
    to_stdout = destination == "-"
    if session.options.json:
        output.document({"snapshot": snapshot, "output": destination, "bytes": size}, aside=to_stdout)
    elif not session.options.quiet:
        output.line(f"wrote {size_text(size)} of {snapshot} to {destination}", aside=to_stdout)
