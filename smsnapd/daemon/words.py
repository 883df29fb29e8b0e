"""A recovery key as 24 words, for paper and telephone (BIP-39, by an extra: `pip install smsnapd[paper]`).

The words are of the identity secret alone, with the 8 bits of checksum that BIP-39 has; whoever mistypes them
past that has another identity, which the repository's root tells.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from smsnapd.errors import SmsnapError, WrongKeyError

if TYPE_CHECKING:
    from mnemonic import Mnemonic

COUNT: Final = 24
INSTALL: Final = "install smsnapd with it: pip install 'smsnapd[paper]'"


def is_words(text: str) -> bool:
    """Whether this is, or is meant to be, a recovery key as words."""
    return len(text.split()) == COUNT and all(word.isascii() and word.isalpha() for word in text.split())


def to_words(recovery_key: str) -> str:
    """The words of a recovery key. SmsnapError where the extra is missing."""
    from smsnapd.format.keys import Identity

    return str(_language().to_mnemonic(Identity.from_recovery_key(recovery_key).secret))


def from_words(text: str) -> str:
    """The recovery key of the words; WrongKeyError, which repeats none of them, if they are mistyped."""
    from smsnapd.format.keys import Identity

    what, language = "read the recovery words", _language()
    words = text.lower().split()
    unknown = [number for number, word in enumerate(words, start=1) if word not in language.wordlist]
    if unknown:
        numbers = ", ".join(map(str, unknown))
        raise WrongKeyError(what, f"word {numbers} is not on the list", "compare it with the paper")
    if not language.check(" ".join(words)):
        raise WrongKeyError(what, "their checksum is wrong", "compare every word, and their order")
    return Identity(bytes(language.to_entropy(words))).recovery_key()


def _language() -> Mnemonic:
    try:
        from mnemonic import Mnemonic
    except ImportError as error:
        raise SmsnapError("use recovery words", "the library for them is not installed", INSTALL) from error
    return Mnemonic("english")
