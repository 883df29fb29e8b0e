"""`smsnap key new|recovery`: an identity of one's own, and one on paper: as letters, words or a QR code."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from smsnapd.cli import output
from smsnapd.cli.key_file import reserved
from smsnapd.cli.options import verb
from smsnapd.cli.session import Session
from smsnapd.errors import SmsnapError, UsageError, WrongKeyError

NEW_EXAMPLES = """
smsnap key new --identity-out escrow.key --recipient-out escrow.recipient
"""
RECOVERY_EXAMPLES = """
smsnap key recovery --words
smsnap key recovery --qr recovery.svg
"""


@verb("new", examples=NEW_EXAMPLES)
@click.option(
    "--identity-out", required=True, metavar="FILE", help="Where the identity goes; keep it secret."
)
@click.option("--recipient-out", required=True, metavar="FILE", help="Where its public half goes.")
def key_new(identity_out: str, recipient_out: str) -> int:
    """Make an identity, with which somebody is to open repositories as a recipient.

    Give the public half to whoever owns the repository: `smsnap key add --recipient FILE`. No repository
    is needed for this.
    """
    from smsnapd.format.keys import Identity

    session = Session.current()
    with reserved(Path(identity_out)) as secret, reserved(Path(recipient_out)) as public:
        identity = Identity.generate()
        secret(identity.recovery_key())
        public(identity.recipient.to_text())
    if not session.options.quiet:
        output.line(
            f"the identity is in {identity_out}, recipient {identity.recipient.id.hex()} in {recipient_out}"
        )
    return 0


@verb("recovery", examples=RECOVERY_EXAMPLES)
@click.option("--words", is_flag=True, help="As 24 words.")
@click.option(
    "--qr", metavar="FILE", help="As a QR code, to FILE (.svg or .png), or to the terminal with `-`."
)
def key_recovery(words: bool, qr: str | None) -> int:
    """Show the recovery key of the identity that opens the repository, to be printed or written down.

    As letters, as 24 words with a checksum, or as a QR code of the letters. Any of them is given
    wherever a passphrase is asked for, or with --identity-file. Words and QR codes need the extra `paper`.
    """
    if words and qr:
        raise UsageError("show the recovery key", "--words and --qr are two ways", "choose one")
    session = Session.current()
    with session.repository(contents=True) as repository:
        if repository.identity is None:
            raise WrongKeyError("show the recovery key", "a write key has none", "use the passphrase")
        recovery_key = repository.identity.recovery_key()
    if qr is not None:
        _draw(recovery_key, qr)
    else:
        for row in _in_rows(recovery_key) if words else [recovery_key]:
            output.line(row)
    return 0


def _in_rows(recovery_key: str) -> list[str]:
    """The words, numbered, four in a row."""
    from smsnapd.daemon.words import to_words

    words = [f"{number:2} {word:9}" for number, word in enumerate(to_words(recovery_key).split(), start=1)]
    return ["  ".join(words[at : at + 4]).rstrip() for at in range(0, len(words), 4)]


def _draw(recovery_key: str, file: str) -> None:
    """Draw it, with the letters below as those who have no camera read them."""
    from smsnapd.daemon.words import INSTALL

    try:
        import segno
    except ImportError as error:
        raise SmsnapError("draw a QR code", "the library for it is not installed", INSTALL) from error
    code: Any = segno.make(recovery_key, error="m", micro=False)
    if file == "-":
        code.terminal(out=sys.stdout, compact=True)
        output.line(recovery_key)
        return
    kind = Path(file).suffix.removeprefix(".").lower()
    if kind not in ("svg", "png"):
        raise UsageError(f"draw a QR code to {file}", "its name ends neither in .svg nor in .png")
    with reserved(Path(file)) as write:
        write(_drawn(code, kind))


def _drawn(code: Any, kind: str) -> bytes:
    import io

    drawn = io.BytesIO()
    code.save(drawn, kind=kind, scale=8)
    return drawn.getvalue()
