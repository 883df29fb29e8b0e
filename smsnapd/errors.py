"""The exception tree: what was being done, to what, why it failed, and what to do next.

Every error that reaches a person is one of these; each class fixes an exit status of the
command line. Nothing here knows of rooms above it.
"""

from __future__ import annotations

from typing import Any, ClassVar


class SmsnapError(Exception):
    """An error for people.

    `what` is the operation and its object ("read the manifest 0000000003-…"), `why` the cause in
    plain words, `hint` what to do next (may be empty). None of them may hold a secret.
    """

    exit_status: ClassVar[int] = 1

    def __init__(self, what: str, why: str, hint: str = "") -> None:
        super().__init__(what, why, hint)
        self.what = what
        self.why = why
        self.hint = hint

    def __reduce__(self) -> tuple[Any, ...]:
        """Errors travel from worker processes whole."""
        return _rebuilt, (type(self), dict(self.__dict__))

    def __str__(self) -> str:
        sentence = f"cannot {self.what}: {self.why}"
        return f"{sentence} ({self.hint})" if self.hint else sentence


def _rebuilt(kind: type[SmsnapError], members: dict[str, Any]) -> SmsnapError:
    error = kind(members["what"], members["why"], members["hint"])
    error.__dict__.update(members)
    return error


class UsageError(SmsnapError):
    """The command line or a value given there is wrong."""

    exit_status = 2


class ConfigError(UsageError):
    """The configuration is wrong: an unknown key, a value of the wrong form, a missing file."""


class NoRepositoryError(SmsnapError):
    """There is no repository at the URL."""

    exit_status = 10


class LockedError(SmsnapError):
    """Another writer owns the volume's chain."""

    exit_status = 11


class WrongKeyError(SmsnapError):
    """The passphrase or key does not open this repository."""

    exit_status = 12


class DamageError(SmsnapError):
    """Bytes of the repository are not what was written, or are missing."""

    exit_status = 13


class StoreError(SmsnapError):
    """A store could not do what it was asked.

    `transient` says whether the same call may succeed later without anybody's help.
    """

    def __init__(self, what: str, why: str, hint: str = "", *, transient: bool = False) -> None:
        super().__init__(what, why, hint)
        self.transient = transient


class ObjectMissingError(StoreError):
    """No object has this name."""


class ObjectExistsError(StoreError):
    """An object of this name exists and has other bytes."""


class ConflictError(StoreError):
    """A conditional replacement lost: the object is not at the version that was expected."""


class DeniedError(StoreError):
    """Whoever asks may not do this."""


class KeptError(StoreError):
    """The store keeps the object from being deleted, for now: a lock, a legal hold."""


class VolumeError(SmsnapError):
    """The volume cannot be read as asked: not there, not a directory, not mounted, busy."""


class TargetError(SmsnapError):
    """The target of a restore cannot be used: not empty, read-only, full."""
