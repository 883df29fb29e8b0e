"""Loading what a verb needs while it waits for something else: a passphrase takes as long to try."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading(module: str) -> Iterator[None]:
    """Import a module beside what the `with` does, and to the end before what follows it.

    If it cannot be imported, that shows where it is imported again.
    """
    thread = threading.Thread(target=_load, args=(module,), name="loading")
    thread.start()
    try:
        yield
    finally:
        thread.join()


def _load(module: str) -> None:
    try:
        importlib.import_module(module)
    except ImportError:
        return
