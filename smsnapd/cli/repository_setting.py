"""Writing the repository's URL into a configuration that has none, and leaving the rest as it is."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile

from smsnapd.errors import SmsnapError, UsageError

_HINT = "write [repository] url there by hand"
_HEADER = re.compile(r"^\[repository\][ \t]*(#.*)?$", re.MULTILINE)


def set_repository(file: Path, url: str) -> None:
    """Write `url` into the [repository] of a configuration that has none.

    Raises UsageError if it cannot be put there, SmsnapError if the file cannot be read or written.
    """
    what = f"write the repository into {file}"
    try:
        changed = _with_url(file.read_text(encoding="utf-8"), f"url = {_basic_string(url)}")
        if tomllib.loads(changed)["repository"]["url"] != url:
            raise UsageError(what, "it would not say that then", _HINT)
        with _replaced(file) as new:
            new.write_text(changed, encoding="utf-8")
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(what, str(error), _HINT) from error
    except OSError as error:
        raise SmsnapError(what, error.strerror or str(error), "run as root") from error


def _with_url(text: str, line: str) -> str:
    header = _HEADER.search(text)
    if header is None:
        return f"{text.rstrip()}\n\n[repository]\n{line}\n"
    return f"{text[: header.end()]}\n{line}{text[header.end() :]}"


def _basic_string(text: str) -> str:
    """A basic string of TOML 1.0."""
    escaped = "".join(
        f"\\u{ord(character):04x}" if ord(character) < 0x20 or character in '"\\\x7f' else character
        for character in text
    )
    return f'"{escaped}"'


@contextmanager
def _replaced(file: Path) -> Iterator[Path]:
    """A new file beside `file`, for its owner alone, which takes its place in the end."""
    with NamedTemporaryFile(dir=file.parent, prefix=file.name, delete=False) as made:
        new = Path(made.name)
    try:
        yield new
        os.replace(new, file)
    finally:
        new.unlink(missing_ok=True)
