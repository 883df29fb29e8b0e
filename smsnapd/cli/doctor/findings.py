"""What a check finds, and how checks are run: none takes the others with it, and none lasts for ever."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Generic, Literal, NamedTuple, TypeVar

from smsnapd.errors import ConfigError, DamageError, SmsnapError, StoreError

Verdict = Literal["ok", "warn", "fail", "skipped"]
P = TypeVar("P")
log = logging.getLogger(__name__)

CHECK_S: Final = 8.0
TOTAL_S: Final = 20.0
LEAST_S: Final = 0.5
"""What a check has at least, if those before it have used up the time of all."""


@dataclass(frozen=True)
class Finding:
    """What came of one check; `mend` is a command or a line of configuration or policy, or ""."""

    subject: str
    check: str
    verdict: Verdict
    told: str
    mend: str = ""


_MENDS: Final[tuple[tuple[type[SmsnapError], str], ...]] = (
    (ConfigError, "correct it in the configuration"),
    (DamageError, "see what is damaged: smsnap check"),
    (StoreError, "run smsnap doctor again; if it stays so, look at the server's own log"),
)


class Judged(NamedTuple):
    """A finding as its check says it; `check` is given if it is not the check's own name."""

    verdict: Verdict
    told: str
    mend: str = ""
    check: str = ""


def ok(told: str, *, check: str = "") -> Judged:
    """As it should be."""
    return Judged("ok", told, "", check)


def warn(told: str, mend: str, *, check: str = "") -> Judged:
    """It works, and is not as it should be."""
    return Judged("warn", told, mend, check)


def fail(told: str, mend: str, *, check: str = "") -> Judged:
    """It does not work."""
    return Judged("fail", told, mend, check)


def skipped(told: str, mend: str = "", *, check: str = "") -> Judged:
    """It was not looked at, for this reason."""
    return Judged("skipped", told, mend, check)


def mend_of(error: SmsnapError) -> str:
    """What to do about an error: its hint, else what goes for all of its kind."""
    if error.hint:
        return error.hint
    return next(
        (mend for kind, mend in _MENDS if isinstance(error, kind)), "see the log with `smsnap -v doctor`"
    )


class BlockedError(Exception):
    """A check needs what another one has found not to be there; its text says what."""


class Check(NamedTuple, Generic[P]):
    """A check of a patient, under a subject. `late` is what is told if it does not end in its time."""

    subject: str
    name: str
    run: Callable[[P], Iterable[Judged]]
    late: Judged = fail("no answer in time", "see what hangs there: a disk, a mount, the network")


def examine(
    patient: P,
    checks: Sequence[Check[P]],
    *,
    check_s: float = CHECK_S,
    total_s: float = TOTAL_S,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Finding]:
    """Run the checks one after another; findings come as they are made.

    A check has `check_s` seconds, less if the `total_s` of all are used up. One that does not end by then
    is left to itself, in a thread that does not keep the process.
    """
    until_s = clock() + total_s
    for check in checks:
        limit_s = max(LEAST_S, min(check_s, until_s - clock()))
        for judged in _bounded(check, patient, limit_s):
            yield Finding(check.subject, judged.check or check.name, judged.verdict, judged.told, judged.mend)


def _bounded(check: Check[P], patient: P, limit_s: float) -> list[Judged]:
    """What a check says within its time."""
    found: list[Judged] = []
    thread = threading.Thread(target=_collect, args=(check, patient, found), daemon=True)
    thread.start()
    thread.join(limit_s)
    said = list(found)
    if thread.is_alive():
        said.append(check.late)
    return said


def _collect(check: Check[P], patient: P, found: list[Judged]) -> None:
    """Put what a check says into `found` one by one, for it may hang, and its end by an error too."""
    try:
        for judged in check.run(patient):
            found.append(judged)
    except BlockedError as error:
        found.append(skipped(str(error)))
    except SmsnapError as error:
        found.append(fail(f"cannot {error.what}: {error.why}", mend_of(error)))
    except Exception as error:  # whatever it is, the other checks go on
        log.info("the check %s %s ended with an error", check.subject, check.name, exc_info=error)
        told = f"unexpected {type(error).__name__}: {error}"
        found.append(fail(told, "this is a defect of smsnap: please report it, with `smsnap -v doctor`"))
