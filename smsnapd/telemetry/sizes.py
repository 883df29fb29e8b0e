"""Sizes for people."""

from __future__ import annotations


def size_text(size_bytes: int) -> str:
    """A size in binary units with three digits that matter: `982 B`, `1.53 KiB`, `12.0 GiB`."""
    if size_bytes < 1024:
        return f"{size_bytes} B"
    size = float(size_bytes)
    for unit in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        size /= 1024
        if size < 1023.5 or unit == "PiB":
            break
    return f"{size:.{2 if size < 9.995 else 1 if size < 99.95 else 0}f} {unit}"
