"""The words of a report: which names, versions and URLs are what they should be, and which hold secrets.

They come from files that anybody may have written, and end up in command lines.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import urlsplit, urlunsplit

_NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,198}[A-Za-z0-9])?")
_VERSION: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9.!+_-]{0,99}")
_CONDA_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
_SPEC: Final = re.compile(r"[A-Za-z0-9_*][A-Za-z0-9._*<>=!~,| :/\[\]'\"+-]{0,199}")
_COMMIT: Final = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_REVISION: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/+-]{0,199}")
_PYTHON: Final = re.compile(r"([23])\.([0-9]{1,3})(?:\.[0-9A-Za-z.+-]{1,30})?")
_SCP: Final = re.compile(r"(?:[A-Za-z0-9._-]+@)?[A-Za-z0-9][A-Za-z0-9._-]*:[^:].*")
_TOKEN_IN_PATH: Final = re.compile(r"/t/[^/]+/")
_WEB: Final = ("http", "https")
_ESCAPED: Final = re.compile(rb"\\x([0-9a-f]{2})")
_PRINTABLE: Final = re.compile(r"[!-~]{1,2000}")


def is_package_name(text: str) -> bool:
    """Whether it is a distribution's name (the core metadata specification)."""
    return _NAME.fullmatch(text) is not None


def is_version(text: str) -> bool:
    """Whether it is a version, as far as a command line needs to know."""
    return _VERSION.fullmatch(text) is not None


def is_conda_name(text: str) -> bool:
    """Whether it is a conda package's name."""
    return _CONDA_NAME.fullmatch(text) is not None


def is_conda_spec(text: str) -> bool:
    """Whether it is a match specification such as `numpy=1.26` or `conda-forge::xarray`."""
    return _SPEC.fullmatch(text) is not None


def is_commit(text: str) -> bool:
    """Whether it is a git object's name, SHA-1 or SHA-256."""
    return _COMMIT.fullmatch(text) is not None


def is_branch(text: str) -> bool:
    """Whether it is a branch's name that no command takes for something else (git-check-ref-format(1))."""
    plain = _REVISION.fullmatch(text) is not None
    return plain and ".." not in text and "//" not in text and not text.endswith(("/", ".", ".lock"))


def minor_of(python: str) -> str:
    """`3.11` of `3.11.7`; "" if it is no version of Python."""
    match = _PYTHON.fullmatch(python)
    return f"{match[1]}.{match[2]}" if match else ""


def canonical_name(name: str) -> str:
    """A distribution's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def without_secrets(url: str) -> str:
    """A URL as it may be told: no password, no token; `…` where it cannot be said what is one.

    Of web addresses no user either, since tokens are given as one, and no query.
    """
    if not _PRINTABLE.fullmatch(url):
        return "…"
    if url.startswith("/"):
        return url
    if "://" not in url and _SCP.fullmatch(url):
        return url
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "…"
    scheme = parts.scheme.rpartition("+")[2]
    if scheme == "file":
        return urlunsplit((parts.scheme, "", parts.path, "", ""))
    if not host or scheme not in (*_WEB, "ssh", "git", "s3"):
        return "…"
    user = f"{parts.username}@" if scheme == "ssh" and parts.username else ""
    path = _TOKEN_IN_PATH.sub("/", parts.path)
    return urlunsplit((parts.scheme, f"{user}{host}{port}", path, "", ""))


def is_cloneable(url: str) -> bool:
    """Whether git may be told to clone this: a web, ssh, git or file address, or a path; never a helper."""
    if not _PRINTABLE.fullmatch(url) or url.startswith("-") or "::" in url or "…" in url:
        return False
    if url.startswith("/"):
        return True
    if "://" not in url:
        return _SCP.fullmatch(url) is not None
    return urlsplit(url).scheme in ("https", "http", "ssh", "git", "file")


def is_web_address(url: str) -> bool:
    """Whether it is an http or https URL of printable characters."""
    return bool(_PRINTABLE.fullmatch(url)) and url.startswith(("https://", "http://"))


def is_channel(url: str) -> bool:
    """Whether conda may be told to take packages from here: a web address, or a directory."""
    return is_web_address(url) or (bool(_PRINTABLE.fullmatch(url)) and url.startswith("file:///"))


def raw(text: str) -> bytes:
    """The bytes that `path_text` made `text` of, slashes at its ends included; of `.` nothing."""
    if text == ".":
        return b""
    data = text.encode("utf-8", "surrogateescape")
    return _ESCAPED.sub(lambda match: bytes([int(match[1], 16)]), data)
