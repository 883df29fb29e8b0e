"""`smsnap mount`: the history as a read-only file system."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import click

from smsnapd.cli import output
from smsnapd.cli.options import repository_at, verb
from smsnapd.cli.session import Session
from smsnapd.errors import UsageError

EXAMPLES = """
smsnap mount /mnt/history                  until Ctrl-C, or umount /mnt/history
ls /mnt/history                            a directory for each recovery point
cp /mnt/history/latest/train.ipynb .
smsnap mount --background --everyone /mnt/history
"""


@verb("mount", examples=EXAMPLES)
@click.argument("directory", metavar="DIR")
@click.option("--background", is_flag=True, help="Return when it is mounted; umount DIR ends it.")
@click.option(
    "--everyone",
    is_flag=True,
    help="Other users may look too, as owners and modes let them; ACLs are not heeded.",
)
@repository_at
def mount(directory: str, background: bool, everyone: bool) -> int:
    """Show all recovery points of a volume under the empty directory DIR, read-only.

    Each is a directory DIR/TIME-ID with its tree, TIME in UTC, and DIR/latest leads to the newest. Files have
    all that they had: owners, modes, times, attributes, hard links, holes. A tree is read from the repository
    when somebody looks into it, and of contents only what is read. New recovery points appear within half a
    minute. Needs FUSE (pip install 'smsnapd[mount]', fuse3) and the passphrase. What cannot be read is an
    I/O error, and in the foreground told on standard error.
    """
    from smsnapd.volume.fuse import check_available

    session = Session.current()
    place = Path(directory).expanduser().absolute()
    if not place.is_dir():
        raise UsageError(f"mount on {place}", "it is no directory", f"make it: mkdir {place}")
    check_available()
    if background:
        return _in_background(lambda ready: _serve(session, place, everyone, ready))
    return _serve(session, place, everyone, lambda: _announce(session, place))


def _announce(session: Session, place: Path) -> None:
    if not session.options.quiet:
        output.warn(f"mounted on {place}; Ctrl-C or `umount {place}` ends it")


def _serve(session: Session, place: Path, everyone: bool, ready: Callable[[], None]) -> int:
    from smsnapd.engine.lookback.showing import ShownHistory
    from smsnapd.engine.restore.worklist import spool_directory
    from smsnapd.volume.fuse import FuseOptions, serve

    with session.repository(contents=True) as repository:
        volume = session.volume_in(repository)
        options = FuseOptions(source="smsnap", everyone=everyone, cache_s=10.0)
        with closing(ShownHistory(repository, volume, spool_directory())) as shown:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)  # libfuse unmounts then; what others handle it lets be
            serve(shown, os.fsencode(place), options, ready)
    return 0


def _in_background(work: Callable[[Callable[[], None]], int]) -> int:
    """Do it in another process; this one ends when that is ready, or with its status.

    It shares the terminal until then, so that it can ask for the passphrase and say what is wrong.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        return work(lambda: _part(writing))
    os.close(writing)
    with open(reading, "rb") as told:
        if told.read(1):
            return 0
    _, status = os.waitpid(child, 0)
    sys.stdout.flush()
    return os.waitstatus_to_exitcode(status)


def _part(writing: int) -> None:
    """Leave the terminal, and tell the parent."""
    os.setsid()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    os.write(writing, b"1")
    os.close(writing)
