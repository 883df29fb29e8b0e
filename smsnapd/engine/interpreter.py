"""A new interpreter as a worker process, for a program that has threads and so must not fork.

Unlike `multiprocessing`'s own it leaves no process behind that keeps books of shared memory: that one would
rest beside the daemon for as long as it lives. And it imports nothing from the directory that it starts in.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable


class Interpreter:
    """A process that calls a function with a descriptor; it is waited for as a `multiprocessing.Process`."""

    def __init__(self, function: Callable[[int], None], descriptor: int) -> None:
        """`descriptor` stays open there, under its number. OSError if no process can be started."""
        module, name = function.__module__, function.__qualname__
        code = (
            f"import sys; sys.path[:] = {sys.path!r}\n"
            f"from {module} import {name}; {name}({descriptor})"
        )  # fmt: skip
        warnings = [f"-W{option}" for option in sys.warnoptions]
        self._process = subprocess.Popen(
            [sys.executable, "-P", *warnings, "-c", code], stdin=subprocess.DEVNULL, pass_fds=(descriptor,)
        )

    @property
    def exitcode(self) -> int | None:
        """Its exit status, negative for a signal; None while it lives."""
        return self._process.poll()

    def is_alive(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    def join(self, timeout: float | None = None) -> None:
        """Wait for its end, for so many seconds at most."""
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return

    def kill(self) -> None:
        """End it now."""
        self._process.kill()
