"""Logs and progress for people and for programs, on standard error.

>>> with progress_to(sys.stderr, as_json=True, quiet=False) as progress:
...     progress.phase("store", files=2)
...     progress.advance(files=1, bytes=512)
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from smsnapd.engine.progress import Progress, Silent
from smsnapd.telemetry.secrets import RedactingFormatter

_log = logging.getLogger("smsnapd")


def set_up_logging(verbosity: int, stream: TextIO, formatter: logging.Formatter | None = None) -> None:
    """Log to `stream`: -1 errors only, 0 warnings too, 1 what is done, 2 and more details.

    A `formatter` has to keep secrets out, as the usual one does. May be called again. The SDK's own
    debug log holds signed requests, so it is never shown.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter or RedactingFormatter("smsnap: %(levelname)s: %(message)s"))
    for old in list(_log.handlers):
        _log.removeHandler(old)
    _log.addHandler(handler)
    _log.propagate = False
    levels = {-1: logging.ERROR, 0: logging.WARNING, 1: logging.INFO}
    _log.setLevel(levels.get(verbosity, logging.DEBUG))
    for noisy in ("boto3", "botocore", "s3transfer", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


@contextmanager
def progress_to(stream: TextIO, *, as_json: bool, quiet: bool) -> Iterator[Progress]:
    """A progress for the length of a `with`: a bar on a terminal, JSON lines, or only notes in the log."""
    if quiet:
        yield Silent()
    elif as_json:
        from smsnapd.telemetry.lines import JsonProgress

        with JsonProgress(stream) as lines:
            yield lines
    elif stream.isatty():
        from smsnapd.telemetry.terminal import TerminalProgress

        with TerminalProgress(stream) as bar:
            yield bar
    else:
        yield LoggedNotes()


class LoggedNotes(Silent):
    """Where nobody watches: notes go to the log, counts nowhere."""

    def note(self, text: str) -> None:
        """Log the note."""
        _log.info("%s", text)
