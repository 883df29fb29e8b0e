"""Keeping keys out of core dumps, and away from other processes of the same user."""

from __future__ import annotations

import ctypes
import resource
from typing import Final

_PR_SET_DUMPABLE: Final = 4
"""linux/prctl.h."""


def forbid_core_dumps() -> None:
    """From now on this process leaves no core dump, whatever is set to collect them. May be repeated.

    A limit of 0 does not stop a collector that the kernel pipes dumps to (core(5)); PR_SET_DUMPABLE does, and
    other processes of the same user can no longer trace this one or read its memory and environment
    (prctl(2)). Forked processes inherit it, programs that they start do not.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
