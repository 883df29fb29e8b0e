"""Code run in a process of its own: to be another user, or to be killed."""

from __future__ import annotations

import codecs
import os
import pickle
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
codecs.lookup("ascii")  # now: another user may not be able to read Python's own files
KILLED = object()


def run_child(work: Callable[[], T], *, uid: int = 0) -> T | Any:
    """What `work` returns in a child that is user `uid`; `KILLED` if it was; AssertionError if it failed."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        _live(work, uid, writing)
    os.close(writing)
    with open(reading, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) or not answer:
        return KILLED
    succeeded, result = pickle.loads(answer)
    if not succeeded:
        raise AssertionError(f"in the child: {result}")
    return result


def _live(work: Callable[[], object], uid: int, writing: int) -> None:
    """The child's life: it never returns into the test that forked it."""
    try:
        if uid:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
        answer = (True, work())
    except BaseException:
        answer = (False, traceback.format_exc())
    try:
        with open(writing, "wb") as pipe:
            pickle.dump(answer, pipe)
    finally:
        os._exit(0)
