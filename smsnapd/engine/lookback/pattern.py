"""Names and paths by shell patterns, as `find` takes them."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Callable, Sequence

Matches = Callable[[bytes], bool]


def pattern(text: bytes, *, ignore_case: bool = False) -> Matches:
    """Whether a path matches a pattern of `*`, `?` and `[…]`, none of which stands for `/`.

    A pattern without `/` is held against the name, one with it against the whole path from the root; there
    the component `**` stands for any number of directories. The root matches nothing but `**`.
    """
    flags = re.IGNORECASE if ignore_case else 0
    parts = [_component(part, flags) for part in os.fsdecode(text).strip("/").split("/")]
    if b"/" not in text.rstrip(b"/"):
        (name,) = parts
        if name is not None:
            return lambda path: name.match(os.fsdecode(path.rpartition(b"/")[2])) is not None
    return lambda path: _agree(os.fsdecode(path).split("/") if path else [], parts)


def _component(text: str, flags: int) -> re.Pattern[str] | None:
    """One component; None is `**`."""
    return None if text == "**" else re.compile(fnmatch.translate(text), flags)


def _agree(names: Sequence[str], parts: Sequence[re.Pattern[str] | None]) -> bool:
    """Whether the components of a path are those that `parts` ask for, in time that grows with both."""
    reached = {0}
    reached = _skip(reached, parts)
    for name in names:
        onward = set()
        for position in reached:
            if position < len(parts):
                part = parts[position]
                if part is None:
                    onward.add(position)
                elif part.match(name):
                    onward.add(position + 1)
        reached = _skip(onward, parts)
        if not reached:
            return False
    return len(parts) in reached


def _skip(reached: set[int], parts: Sequence[re.Pattern[str] | None]) -> set[int]:
    """`**` may stand for nothing."""
    found = set(reached)
    for position in sorted(reached):
        while position < len(parts) and parts[position] is None:
            position += 1  # noqa: PLW2901
            found.add(position)
    return found
