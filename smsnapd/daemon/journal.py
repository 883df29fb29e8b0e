"""Logs of a service: with priorities for journald where it listens, with times elsewhere."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import TextIO

from smsnapd.telemetry import set_up_logging
from smsnapd.telemetry.secrets import RedactingFormatter

_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


class JournalFormatter(RedactingFormatter):
    """Every line begins with its priority, `<6>` for example (sd-daemon(3))."""

    def format(self, record: logging.LogRecord) -> str:
        """The lines of a record."""
        prefix = f"<{_PRIORITIES.get(record.levelno, 6)}>"
        return "\n".join(prefix + line for line in super().format(record).splitlines())


def set_up_service_logging(verbosity: int, stream: TextIO, environment: Mapping[str, str]) -> None:
    """Log to `stream`: -1 warnings and errors, 0 what is done too, 1 and more details."""
    if is_journal(stream, environment):
        formatter: logging.Formatter = JournalFormatter("%(message)s")
    else:
        formatter = RedactingFormatter("%(asctime)s smsnapd: %(levelname)s: %(message)s")
    set_up_logging(verbosity + 1, stream, formatter)


def is_journal(stream: TextIO, environment: Mapping[str, str]) -> bool:
    """Whether journald reads the stream: `JOURNAL_STREAM` is its device and inode (systemd.exec(5))."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return environment.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
