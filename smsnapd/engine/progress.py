"""The port through which long work tells how far it is; telemetry has the implementations."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Told by the engine, from any thread; implementations must be quick and must not raise."""

    def phase(self, name: str, files: int | None = None, bytes: int | None = None) -> None:
        """Begin a phase and end the one before: a word for people, and totals where they are known, about.

        Counts start at zero again, `stored_bytes` with them.
        """

    def advance(self, files: int = 0, bytes: int = 0, stored_bytes: int = 0) -> None:
        """Add to the counts of the phase: files and bytes done, bytes that went to the store."""

    def note(self, text: str) -> None:
        """Tell a person something that is no error, in one sentence."""


class Silent:
    """A progress that tells nobody."""

    def phase(self, name: str, files: int | None = None, bytes: int | None = None) -> None:
        """Do nothing."""

    def advance(self, files: int = 0, bytes: int = 0, stored_bytes: int = 0) -> None:
        """Do nothing."""

    def note(self, text: str) -> None:
        """Do nothing."""
