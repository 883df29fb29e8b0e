"""Text as a terminal may have it: what was read somewhere must not steer it."""

from __future__ import annotations

import re

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def plain(text: str) -> str:
    """`text` in one line, with control characters as `\\xNN`, as `model.path_text` shows them.

    Labels, holders and reasons come from the repository, where others can write.
    """
    if text.isprintable():
        return text
    return _CONTROL.sub(lambda match: "".join(f"\\x{byte:02x}" for byte in match[0].encode()), text)


def plain_lines(text: str) -> str:
    """The same with its line feeds kept."""
    return "\n".join(map(plain, text.split("\n")))
