"""What the daemon does for those beside it."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys

import pytest

KEEPER = """
import json, os, sys
from smsnapd.daemon.considerate import give_back_memory, use_malloc

def held_kib():  # of its own: what it has of libraries is more when others that have them too end
    return int(open("/proc/self/smaps_rollup").read().partition("Anonymous:")[2].split()[0])

use_malloc(os.environ)
before = held_kib()
made = [(number, str(number)) for number in range(300_000)]
most = held_kib()
kept = made[::3000]  # far from each other
del made
give_back_memory()
said = os.getpid(), sys.argv[1:], os.environ.get("PYTHONMALLOC"), most - before, held_kib() - before
print(json.dumps(said))
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs glibc's malloc")
def test_what_a_run_has_filled_is_given_back_though_something_of_it_stays() -> None:
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONMALLOC"}
    process = subprocess.Popen(
        [sys.executable, "-c", KEEPER, "one", "two"], env=environment, stdout=subprocess.PIPE, text=True
    )
    out, _ = process.communicate()
    pid, arguments, allocator, most, left = json.loads(out)
    assert (pid, arguments, allocator) == (process.pid, ["one", "two"], None)
    assert most > 20_000
    assert left < most / 4


def test_an_allocator_that_somebody_asked_for_is_taken() -> None:
    code = "import os; from smsnapd.daemon.considerate import use_malloc; use_malloc(os.environ)"
    environment = {**os.environ, "PYTHONMALLOC": "debug"}
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; print('here', os.environ['PYTHONMALLOC'])"],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["here", "debug"]
