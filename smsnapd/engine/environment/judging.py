"""Whether a report alone can rebuild an environment, so that a snapshot need not hold it.

Only if every file in it came with a package, is as that brought it, and is to be had: each package is pinned,
from an index or a channel of everybody's, and an index has it now. When in doubt it is not.
Sources: the recording-installed-projects specification (RECORD), PEP 376, conda's conda-meta records.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import os
import stat
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from smsnapd.engine.environment.packages import site_directories
from smsnapd.engine.environment.prints import Node, nodes_of, take_print
from smsnapd.engine.environment.reading import Deadline, entries_of, read_file, read_text
from smsnapd.engine.environment.report import Conda, Package, Venv
from smsnapd.engine.environment.words import is_package_name, is_version
from smsnapd.model import path_text

RECORD_BYTES: Final = 32 * 1024 * 1024
INDEX_S: Final = 300.0
_INSTALLERS: Final = frozenset({"pip", "uv"})
_HASHES: Final = frozenset({"sha256", "sha384", "sha512"})
_CHANNELS: Final = ("https://conda.anaconda.org/", "https://repo.anaconda.com/", "https://repo.prefix.dev/")
_MADE_WITH_IT_S: Final = 120.0
_SCRIPTS: Final = (b"bin/activate", b"bin/Activate.ps1", b"bin/deactivate")
_PYTHONS: Final = b"bin/python"

Expected = dict[bytes, tuple[str, bytes] | None]
"""By path in the environment: name and digest of a hash; None where a package records none."""


class NotAgainError(Exception):
    """It cannot be made again from the report alone; why."""


class Judged(msgspec.Struct, frozen=True):
    """An environment of the volume, by its path: its print, and why it cannot be left out; "" if it can.

    That of one with `linked` files can change without anything being heard of it.
    """

    path: bytes
    why: str
    digest: bytes = b""
    files: int = 0
    size_bytes: int = 0
    linked: bool = False


def judge(prefix: bytes, path: bytes, environment: Venv | Conda, deadline: Deadline) -> Judged:
    """Judge the environment at `prefix`, which is `path` on the volume. TimeUpError if it takes too long."""
    try:
        taken = take_print(prefix)
        if isinstance(environment, Venv):
            _judge_venv(prefix, environment, deadline)
        else:
            _judge_conda(prefix, environment, deadline)
    except (NotAgainError, ValueError, OSError) as error:
        return Judged(path, str(error))
    return Judged(path, "", taken.digest, taken.files, taken.size_bytes, taken.linked)


def _judge_venv(prefix: bytes, venv: Venv, deadline: Deadline) -> None:
    _check_origins(venv.packages)
    expected = _recorded(prefix)
    made_s = os.lstat(os.path.join(prefix, b"pyvenv.cfg")).st_mtime
    _check_files(prefix, expected, deadline, made_s)
    check_index(venv.packages, venv.python, deadline)


def _judge_conda(prefix: bytes, conda: Conda, deadline: Deadline) -> None:
    for package in conda.packages:
        if not (package.url.startswith(_CHANNELS) and package.md5):
            raise NotAgainError(f"{package.name} is from no channel that everybody has")
    _check_origins(conda.pip)
    expected = {**_recorded(prefix), **_conda_files(prefix)}
    _check_files(prefix, expected, deadline, None)
    if conda.pip:
        python = next((package.version for package in conda.packages if package.name == "python"), "")
        check_index(conda.pip, python, deadline)


def _check_origins(packages: Sequence[Package]) -> None:
    for package in packages:
        if package.source or package.editable:
            raise NotAgainError(f"{package.name} is not from an index")
        if package.installer not in _INSTALLERS:
            raise NotAgainError(f"{package.name} was installed by nobody knows what")


def _recorded(prefix: bytes) -> Expected:
    """All that the distributions say that they have."""
    expected: Expected = {}
    for site in site_directories(prefix):
        for entry in entries_of(site):
            if entry.name.endswith((b".egg-info", b".egg-link")):
                raise NotAgainError(f"{path_text(entry.name)} is of an old kind of install")
            if entry.name.endswith(b".dist-info"):
                _read_record(prefix, site, entry.path, expected)
    return expected


def _read_record(prefix: bytes, site: bytes, directory: bytes, expected: Expected) -> None:
    record = os.path.join(directory, b"RECORD")
    for row in csv.reader(read_text(record, RECORD_BYTES).splitlines()):
        if len(row) < 2:
            raise NotAgainError(f"{path_text(record)} is not as it should be")
        path = os.path.normpath(os.path.join(site, os.fsencode(row[0])))
        if not path.startswith(prefix + b"/"):
            raise NotAgainError(f"{path_text(record)} names what lies elsewhere")
        expected[os.path.relpath(path, prefix)] = _hash_of(row[1])
    expected[os.path.relpath(record, prefix)] = None


def _hash_of(text: str) -> tuple[str, bytes] | None:
    """`sha256=` and URL-safe base64 without padding; None of nothing."""
    if not text:
        return None
    name, _, digest = text.partition("=")
    if name not in _HASHES:
        raise NotAgainError(f"a RECORD has a hash of the kind {name!r}")
    return name, base64.urlsafe_b64decode(digest + "=" * (-len(digest) % 4))


def _conda_files(prefix: bytes) -> Expected:
    expected: Expected = {}
    for entry in entries_of(os.path.join(prefix, b"conda-meta")):
        expected[os.path.join(b"conda-meta", entry.name)] = None
        if not entry.name.endswith(b".json"):
            continue
        try:
            record = msgspec.json.decode(read_file(entry.path, RECORD_BYTES))
            rows = record["paths_data"]["paths"]
            expected.update(_conda_row(row) for row in rows)
        except (msgspec.DecodeError, RecursionError, LookupError, TypeError, AttributeError) as error:
            raise NotAgainError(f"{path_text(entry.path)} does not tell its files") from error
    return expected


def _conda_row(row: Any) -> tuple[bytes, tuple[str, bytes] | None]:
    digest = row.get("sha256_in_prefix") or row.get("sha256")
    return os.fsencode(row["_path"]), ("sha256", bytes.fromhex(digest)) if digest else None


def _check_files(prefix: bytes, expected: Expected, deadline: Deadline, made_s: float | None) -> None:
    """NotAgainError for the first file that is not as a package brought it, or came with none, or is gone."""
    missing = {path for path in expected if not path.endswith(b".pyc")}
    for node in nodes_of(prefix):
        deadline.check()
        missing.discard(node.path)
        if node.is_compiled:
            continue
        if node.path in expected:
            _check_file(prefix, node, expected[node.path], deadline)
        elif not _is_standard(prefix, node, made_s):
            raise NotAgainError(f"{path_text(node.path)} came with no package")
    if missing:
        raise NotAgainError(f"{path_text(min(missing))} is gone")


def _check_file(prefix: bytes, node: Node, expected: tuple[str, bytes] | None, deadline: Deadline) -> None:
    if expected is None:
        if node.path.endswith(b"/RECORD") or node.path.startswith(b"conda-meta/"):
            return
        if stat.S_ISLNK(node.status.st_mode):
            return  # conda records no hash of a link
        raise NotAgainError(f"{path_text(node.path)} has no hash that it could be compared with")
    if digest_of(os.path.join(prefix, node.path), expected[0], deadline) != expected[1]:
        raise NotAgainError(f"{path_text(node.path)} was changed")


def digest_of(path: bytes, name: str, deadline: Deadline) -> bytes:
    """The digest of a file, read piece by piece; links are not followed."""
    digest = hashlib.new(name)
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        while piece := file.read(1024 * 1024):
            digest.update(piece)
            deadline.check()
    return digest.digest()


def _is_standard(prefix: bytes, node: Node, made_s: float | None) -> bool:
    """Whether the making of a virtual environment brought it, and nobody has changed it since then."""
    if made_s is None:
        return False
    path, status, _ = node
    if stat.S_ISLNK(status.st_mode):
        return path == b"lib64" or (path.startswith(_PYTHONS) and b"/" not in path[len(_PYTHONS) :])
    if path in (b".gitignore", b"CACHEDIR.TAG", b".lock"):
        return read_file(os.path.join(prefix, path), 4096).strip() in (b"", b"*") or path == b"CACHEDIR.TAG"
    is_made = path.startswith(_SCRIPTS) or os.path.basename(path).startswith(b"_virtualenv.p")
    return path == b"pyvenv.cfg" or (is_made and abs(status.st_mtime - made_s) < _MADE_WITH_IT_S)


def check_index(packages: Sequence[Package], python: str, deadline: Deadline) -> None:
    """NotAgainError unless pip, as it is configured here, finds every one of them as a wheel now."""
    pins = [f"{package.name}=={package.version}" for package in packages]
    if not all(is_package_name(package.name) and is_version(package.version) for package in packages):
        raise NotAgainError("it has a package that cannot be asked for")
    if not pins:
        return
    try:
        done = subprocess.run(
            [*_PIP, "--python-version", python, "--", *pins],
            check=False,
            env={**os.environ, "PIP_NO_CACHE_DIR": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=max(1.0, min(INDEX_S, deadline.left_s)),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotAgainError(f"no index could be asked: {type(error).__name__}") from error
    if done.returncode:
        said = [line for line in done.stderr.decode("utf-8", "replace").splitlines() if "ERROR" in line]
        raise NotAgainError(f"an index has not all of it: {path_text((said or ['?'])[-1].encode())[:300]}")


_PIP: Final = (
    *(sys.executable, "-I", "-m", "pip", "install", "--dry-run", "--ignore-installed", "--no-deps"),
    *("--target=/nonexistent", "--only-binary=:all:", "--quiet", "--disable-pip-version-check", "--no-input"),
)
