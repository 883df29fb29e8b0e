"""Keys never reach a log: they are struck out of finished lines."""

from __future__ import annotations

import logging
import re

from smsnapd.telemetry.plain import plain_lines

_SECRETS = re.compile(r"SMSNAP-(IDENTITY|WRITE-KEY)-1-[A-Z2-7-]*(?:[ \t][A-Z2-7-]{3,}\b)*")


class RedactingFormatter(logging.Formatter):
    """Formats as usual, then strikes out keys and control characters, in tracebacks too."""

    def format(self, record: logging.LogRecord) -> str:
        """The finished line or lines, without secrets."""
        return plain_lines(redacted(super().format(record)))


def redacted(text: str) -> str:
    """`text` with the keys of FORMAT.md, section 4, struck out."""
    return _SECRETS.sub(r"SMSNAP-\1-1-(withheld)", text)
