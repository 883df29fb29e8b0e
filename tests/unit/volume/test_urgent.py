"""Priority is lent, and given back."""

from __future__ import annotations

import os
import threading

import pytest

from smsnapd.volume import urgent
from smsnapd.volume.urgent import urgently


@pytest.mark.root
def test_priority_is_ordinary_inside_and_low_again_behind() -> None:
    """In a thread of its own: a thread's priority is nobody else's."""
    seen: list[tuple[int, int]] = []

    def look() -> None:
        os.setpriority(os.PRIO_PROCESS, 0, 10)
        urgent._set_io_class(3 << 13)
        for _ in range(2):
            seen.append((os.getpriority(os.PRIO_PROCESS, 0), urgent._io_class() >> 13))
            with urgently():
                seen.append((os.getpriority(os.PRIO_PROCESS, 0), urgent._io_class() >> 13))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [(10, 3), (0, 2)] * 2
