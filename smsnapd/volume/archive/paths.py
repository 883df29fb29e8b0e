"""Names as archives have them, made paths below a volume's root, or refused."""

from __future__ import annotations

from typing import Final

_NAME_MAX: Final = 255
_PATH_MAX: Final = 16_384


def inside(name: bytes) -> tuple[bytes, str]:
    """The path below the root that a member's name means, and why it cannot be taken, "" if it can.

    As GNU tar extracts: a leading `/` is dropped, `.` and empty components mean nothing, and a name with `..`
    in it is refused. Of a refused one the path is what is left without that, to call it by.
    """
    parts = [part for part in name.split(b"/") if part not in (b"", b".")]
    if b".." in parts or b"\0" in name:
        safe = b"/".join(part.replace(b"\0", b"?") for part in parts if part != b"..")
        return _shortened(safe), f"its name in the archive, {_shown(name)}, is none inside of a volume"
    path = b"/".join(parts)
    if len(path) > _PATH_MAX or any(len(part) > _NAME_MAX for part in parts):
        return _shortened(path), "its name is longer than any can be"
    return path, ""


def _shortened(path: bytes) -> bytes:
    return path if len(path) <= _NAME_MAX else path[:_NAME_MAX].rstrip(b"/")


def _shown(name: bytes) -> str:
    return ascii(name.decode("utf-8", "backslashreplace"))[:_NAME_MAX]
