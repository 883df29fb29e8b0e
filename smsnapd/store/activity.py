"""When this process last got bytes on their way to a store.

Who waits for a put tells by it a slow one, which may take hours, from one that hangs.
"""

from __future__ import annotations

import time
from typing import Final


class Activity:
    """The moment of the last sign of life. May be given from any thread."""

    def __init__(self) -> None:
        self.last_ns = 0
        """As of time.monotonic_ns(); 0 before the first sign."""

    def mark(self) -> None:
        """Something has just moved."""
        self.last_ns = time.monotonic_ns()


uploading: Final = Activity()
"""That of all stores of this process."""
