"""Paths of a volume as people type them."""

from __future__ import annotations

import os
from pathlib import Path

from smsnapd.errors import UsageError
from smsnapd.model import path_bytes


def volume_path(text: str, root: Path | None) -> bytes:
    """The path within the volume that `text` means.

    It is relative to the volume's root. An absolute path below the root, as completion gives it on
    the machine itself, means the same; `.` and `/` are the root; `\\xNN` is a byte. Raises `UsageError`
    for a path with `..` in it.
    """
    path = path_bytes(text) if text else b""
    if root is not None and text.startswith("/"):
        inside = os.fsencode(root).strip(b"/")
        if path == inside or path.startswith(inside + b"/"):
            path = path[len(inside) :]
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise UsageError(f"find {text}", "a path in a snapshot has no ..", "name it from the volume's root")
    return b"/".join(parts)
