"""Lengths of time for people."""

from __future__ import annotations

from typing import Final

_UNITS: Final = (("days", 86400), ("h", 3600), ("min", 60))
_FROM: Final = 2
"""A unit is used from so many of it: 90 s says more than 2 min."""


def length_text(seconds: float) -> str:
    """A length in its largest fitting unit: `12 s`, `90 s`, `5 min`, `30 h`, `3 days`."""
    for unit, size in _UNITS:
        if seconds >= _FROM * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
