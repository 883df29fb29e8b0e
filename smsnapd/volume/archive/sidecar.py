"""The sidecar of an export as plain files: one line of JSON for each entry, with what no such copy carries.

Packed with gzip, beside the copy and not in it. Strings are UTF-8; bytes that are none are as Python's
"surrogateescape" has them (PEP 383). The first line says what it is, and whose ids they are.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote_from_bytes

from smsnapd.errors import DamageError
from smsnapd.model import Entry, Flag, Kind, Xattr
from smsnapd.volume.archive.members import Member
from smsnapd.volume.archive.pax import is_possible

SUFFIX: Final = ".smsnap-sidecar.jsonl.gz"
LINE_LIMIT: Final = 16 * 1024 * 1024

_KINDS: Final = {
    Kind.REGULAR: "file", Kind.DIRECTORY: "directory", Kind.SYMLINK: "symlink",
    Kind.FIFO: "fifo", Kind.CHARACTER: "character", Kind.BLOCK: "block",
}  # fmt: skip
_BY_NAME: Final = {name: kind for kind, name in _KINDS.items()}


def object_key(path: bytes) -> str:
    """The key, below the prefix, of a file's contents: its path, or that percent-encoded if it is no key.

    It is none if it is not UTF-8, or has control characters, or a backslash, which some servers take for a
    slash.
    """
    try:
        key = path.decode()
    except UnicodeDecodeError:
        key = "\\"
    return key if key.isprintable() and "\\" not in key else quote_from_bytes(path)


def head_line(volume: str, snapshot: str, users: Mapping[int, str], groups: Mapping[int, str]) -> bytes:
    """The first line."""
    owners = {"users": dict(users), "groups": dict(groups)}
    return _line({"smsnapd": "files", "version": 1, "volume": volume, "snapshot": snapshot, **owners})


def entry_line(path: bytes, entry: Entry) -> bytes:
    """The line of an entry."""
    values: dict[str, Any] = {
        "path": _text(path),
        "kind": _KINDS[Kind(entry.kind)],
        "mode": entry.mode,
        "uid": entry.uid,
        "gid": entry.gid,
        "mtime_ns": entry.mtime_ns,
    }
    if entry.kind == Kind.REGULAR:
        values["size"] = entry.size
        if object_key(path) != _text(path):
            values["object"] = object_key(path)
    if entry.flags & Flag.ALIAS:
        values["link_to"] = _text(entry.target)
    elif entry.kind == Kind.SYMLINK:
        values["target"] = _text(entry.target)
    if entry.rdev:
        values["device"] = [entry.rdev >> 32, entry.rdev & 0xFFFFFFFF]
    if entry.xattrs:
        values["xattrs"] = {_text(x.name): base64.b64encode(x.value).decode() for x in entry.xattrs}
    return _line(values)


def _line(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, separators=(",", ":")).encode("ascii") + b"\n"


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")


def parse_head(line: bytes, what: str) -> tuple[dict[int, bytes], dict[int, bytes]]:
    """The names of users and of groups that the first line has. DamageError if it is no sidecar's."""
    try:
        head = json.loads(line)
        if head["smsnapd"] != "files" or head["version"] != 1:
            raise DamageError(what, "it is a sidecar of another version", "use a later smsnapd")
        users, groups = (
            {int(number): _bytes(name) for number, name in head[key].items()} for key in ("users", "groups")
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamageError(what, "it is no sidecar of `smsnap export --format files`") from error
    return users, groups


def parse_entry(line: bytes, what: str) -> tuple[str, Member]:
    """The key below the prefix that an entry's contents may have, and what it is. DamageError."""
    try:
        values = json.loads(line)
        kind = _BY_NAME[values["kind"]]
        major, minor = values.get("device", (0, 0))
        link, path = values.get("link_to"), _bytes(values["path"])
        xattrs = {_bytes(name): base64.b64decode(text) for name, text in values.get("xattrs", {}).items()}
        if not all(is_possible(Xattr(*pair)) for pair in xattrs.items()):
            raise DamageError(what, "an extended attribute in it is larger than any can be")
        member = Member(
            path=path,
            kind=kind,
            is_link=link is not None,
            mode=int(values["mode"]) & 0o7777,
            uid=int(values["uid"]) & 0xFFFFFFFF,
            gid=int(values["gid"]) & 0xFFFFFFFF,
            user=b"",
            group=b"",
            mtime_ns=max(-(2**63), min(int(values["mtime_ns"]), 2**63 - 1)),
            size=int(values.get("size", 0)),
            target=_bytes(link if link is not None else values.get("target", "")),
            rdev=(int(major) & 0xFFFFFFFF) << 32 | (int(minor) & 0xFFFFFFFF),
            xattrs=tuple(Xattr(name, xattrs[name]) for name in sorted(xattrs)),
            segments=None,
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamageError(what, "a line of it is malformed") from error
    return str(values.get("object", values["path"])), member


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
