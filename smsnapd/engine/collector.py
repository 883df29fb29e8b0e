"""Python's cyclic collector, kept from what it is bad at: looking through a million tuples for nothing.

Entries, extents and what goes with them die by their reference counts. What is in cycles, errors mostly, is
little, and can wait.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_SELDOM: Final = 200_000
"""Containers made and not freed, before the youngest are looked through; Python's default is 700."""


def collect_seldom() -> None:
    """From now on, in a process that does nothing else."""
    gc.freeze()
    gc.set_threshold(_SELDOM)


@contextmanager
def collected_seldom() -> Iterator[None]:
    """For the length of a `with`."""
    before = gc.get_threshold()
    gc.set_threshold(_SELDOM)
    try:
        yield
    finally:
        gc.set_threshold(*before)
