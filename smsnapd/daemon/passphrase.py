"""Where a passphrase comes from when nobody is asked: command line, environment, configuration."""

from __future__ import annotations

import logging
import os
import re
import stat
import subprocess
from collections.abc import Mapping
from pathlib import Path

from smsnapd.config import EncryptionConfig
from smsnapd.errors import SmsnapError, UsageError

RECOVERY_KEY_START = "SMSNAPIDENTITY1"
"""How a recovery key begins, without hyphens (FORMAT.md, section 4)."""

_log = logging.getLogger(__name__)


def find_passphrase(
    given_file: bool, encryption: EncryptionConfig, environment: Mapping[str, str]
) -> str | None:
    """The passphrase without asking anybody; None if nothing names one.

    `given_file` says that `encryption.passphrase_file` is the command line's, which beats the
    environment, which beats the file's.
    """
    from_environment = environment.get("SMSNAP_PASSPHRASE")
    if from_environment and not given_file:
        return from_environment
    if encryption.passphrase_file:
        return _read_file(encryption.passphrase_file)
    if encryption.passphrase_command:
        return _run(encryption.passphrase_command)
    return None


def is_recovery_key(text: str) -> bool:
    """Whether this is, or is meant to be, a recovery key: one may be given wherever a passphrase may."""
    return re.sub(r"[-\s]", "", text).upper().startswith(RECOVERY_KEY_START)


def read_write_key(path: Path) -> str:
    """The text of a write key file."""
    what = f"read the write key {path}"
    try:
        return _read_secret(path, what, "check [encryption] write_key_file").decode("ascii").strip()
    except UnicodeDecodeError as error:
        raise UsageError(what, "it is no write key file") from error


def read_key_file(path: Path, kind: str) -> str:
    """The text of a key file that a person named; `kind` says what is in it."""
    what = f"read the {kind} from {path}"
    try:
        return _read_secret(path, what, "check the name").decode("ascii").strip()
    except UnicodeDecodeError as error:
        raise UsageError(what, "it is no key file") from error


def read_new_passphrase(path: Path) -> str:
    """The first line of a file that a person named for a new passphrase."""
    return _read_file(path)


def _read_file(path: Path) -> str:
    what = f"read the passphrase from {path}"
    return _first_line(_read_secret(path, what, "check passphrase_file, or give another"), what)


def _read_secret(path: Path, what: str, hint: str) -> bytes:
    """What a file holds; warns if others may read it, or it belongs to somebody else."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            content = file.read(65536)
    except OSError as error:
        raise UsageError(what, error.strerror or str(error), hint) from error
    if stat.S_ISREG(status.st_mode) and status.st_mode & 0o077:
        _log.warning("%s can be read by others: run chmod 600 on it", path)
    if stat.S_ISREG(status.st_mode) and status.st_uid not in (0, os.geteuid()):
        _log.warning(
            "%s belongs to user %d, who may read and replace it: run chown on it", path, status.st_uid
        )
    return content


def _run(command: tuple[str, ...]) -> str:
    what = f"run the passphrase_command {command[0]}"
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True)
    except OSError as error:
        raise SmsnapError(
            what, error.strerror or str(error), "check [encryption] passphrase_command"
        ) from error
    except subprocess.CalledProcessError as error:
        why = f"it ended with status {error.returncode}"
        raise SmsnapError(what, why, "run it by hand to see why") from error
    return _first_line(done.stdout, what)


def _first_line(content: bytes, what: str) -> str:
    line = content.split(b"\n", 1)[0].removesuffix(b"\r")
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise UsageError(what, "the first line is not UTF-8") from error
    if not text:
        raise UsageError(what, "the first line is empty", "write the passphrase there")
    return text
