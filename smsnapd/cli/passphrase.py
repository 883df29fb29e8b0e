"""A passphrase from a person at a terminal, where nothing else names one."""

from __future__ import annotations

import getpass
import sys

from smsnapd.errors import UsageError

_SOURCES = "set SMSNAP_PASSPHRASE, give --passphrase-file, or set [encryption] passphrase_file"


def ask(what: str, *, twice: bool) -> str:
    """Ask a person; UsageError where nobody is at a terminal. `twice` is for a new passphrase."""
    if not sys.stdin.isatty():
        raise UsageError(what, "there is no passphrase, and no terminal to ask at", _SOURCES)
    try:
        passphrase = getpass.getpass("New passphrase: " if twice else "Passphrase or recovery key: ")
        if twice and passphrase != getpass.getpass("The same again: "):
            raise UsageError(what, "the two passphrases differ", "run the command again")
    except EOFError as error:
        raise UsageError(what, "no passphrase was typed", _SOURCES) from error
    if not passphrase:
        raise UsageError(what, "the passphrase is empty", "choose one of several words")
    return passphrase
