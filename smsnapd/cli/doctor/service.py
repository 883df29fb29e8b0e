"""The service: its unit, whether the daemon answers, and how old the last recovery point is."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import smsnapd
from smsnapd.cli.doctor.findings import BlockedError, Check, Judged, fail, ok, skipped, warn
from smsnapd.cli.doctor.lengths import length_text
from smsnapd.cli.doctor.patient import Patient
from smsnapd.cli.install import UNIT
from smsnapd.cli.times import local_text
from smsnapd.errors import SmsnapError

if TYPE_CHECKING:
    from smsnapd.daemon.status import Status

RUNTIME: Final = "/run/systemd/system"
"""It is there if, and only if, systemd runs this system (sd_booted(3))."""
_SYSTEMCTL_S: Final = 3.0
_LATE: Final = 3
"""Intervals of [schedule] incremental after which a recovery point is late."""


def unit(patient: Patient) -> Iterator[Judged]:
    """Whether systemd has the unit, starts it at boot, and runs it now."""
    if not _has_systemd():
        yield skipped("systemd does not run this system: see that something else starts smsnapd")
        return
    enabled = _systemctl("is-enabled")
    if enabled in ("", "not-found"):
        yield warn(f"{UNIT} is not installed", _start(patient))
        return
    active = _systemctl("is-active")
    if active in ("active", "activating", "reloading"):
        yield ok(f"{UNIT} is {active}")
    else:
        yield fail(f"{UNIT} is {active}", f"journalctl -u {UNIT} -n 50; sudo systemctl start {UNIT}")
    if enabled != "enabled":
        yield warn(f"{UNIT} is {enabled}: it does not start at boot", f"sudo systemctl enable {UNIT}")


def _has_systemd() -> bool:
    return os.path.isdir(RUNTIME) and shutil.which("systemctl") is not None


def _start(patient: Patient) -> str:
    """The command that gets a daemon running, installed or not."""
    source = patient.config.use().source
    option = f" --config {shlex.quote(str(source.absolute()))}" if source else ""
    return f"sudo smsnap install{option}" if _has_systemd() else f"smsnapd{option}"


def _systemctl(question: str) -> str:
    """The word with which systemctl answers, "" if it does not know the unit."""
    try:
        done = subprocess.run(
            ["systemctl", question, UNIT],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_SYSTEMCTL_S,
        )
    except subprocess.TimeoutExpired as error:
        why = f"it did not answer within {_SYSTEMCTL_S:.0f} s"
        raise SmsnapError(f"run systemctl {question}", why, "systemctl status; is systemd well?") from error
    except OSError as error:
        raise SmsnapError(f"run systemctl {question}", error.strerror or str(error)) from error
    return done.stdout.strip()


def daemon(patient: Patient) -> Iterator[Judged]:
    """Whether a daemon answers, whether it is ours, and how its runs go."""
    from smsnapd.daemon.asking import NotAllowedError

    try:
        status = patient.daemon.examine()
    except NotAllowedError:
        yield skipped("only root and the volume's owner may ask it", "sudo smsnap doctor")
        return
    if status is None:
        yield warn("no daemon is running: what changes from now on is not protected", _start(patient))
        return
    told = f"process {status.pid}, {status.state} since {_local(status.since)}"
    yield _kinship(patient, status) or ok(told)
    if status.configuration_error:
        told = f"its new configuration is not used: {status.configuration_error}"
        yield warn(told, "correct it, then: sudo systemctl reload smsnapd")
    for text in status.telemetry_errors:
        yield warn(text, "correct [telemetry], then: sudo systemctl reload smsnapd")
    if (error := status.last_error) is not None:
        told = f"its runs have failed since {_local(error.since)}: cannot {error.what}: {error.why}"
        yield fail(told, error.hint or f"journalctl -u {UNIT} -n 50")


def _kinship(patient: Patient, status: Status) -> Judged | None:
    """What is wrong with whose daemon it is, if anything."""
    if status.volume != patient.volume_name() or status.repository.url != patient.settings.use().url:
        told = f"it protects {status.volume} to {status.repository.url}: another configuration than this one"
        return warn(told, "name its configuration with --config, or sudo systemctl restart smsnapd")
    if status.version != smsnapd.__version__:
        told = f"it is version {status.version}, and this is {smsnapd.__version__}"
        return warn(told, "sudo systemctl restart smsnapd")
    return None


def recovery_point(patient: Patient) -> Iterator[Judged]:
    """How old the last recovery point is, and whether changes have waited for too long."""
    try:
        status = patient.daemon.use()
    except BlockedError:
        status = None
    if status is None:
        yield _in_repository(patient)
        return
    point, pending = status.last_recovery_point, status.pending.since
    if point is None:
        yield warn("there is none yet", "wait for the first one: smsnap status --watch")
        return
    told = f"{point.kind} {point.id}, {length_text(status.age_s or 0.0)} ago"
    late_s = _LATE * patient.config.use().schedule.incremental.total_seconds()
    if pending is not None and patient.clock() - _seconds(pending) > late_s:
        yield warn(f"{told}; changes have waited since {_local(pending)}", "see what keeps it: smsnap status")
    else:
        yield ok(told + ("" if pending is None else "; changes are pending"))


def _in_repository(patient: Patient) -> Judged:
    """By the names of manifests: nobody need be asked but the store."""
    from smsnapd.repository.manifests import list_manifests

    repository, volume = patient.repository.use(), patient.volume_name()
    if repository is None:
        raise BlockedError("nothing is configured that opens the repository")
    listed = list_manifests(repository, volume).counting
    if not listed:
        return warn(f"volume {volume} has none yet", "smsnap backup")
    age_s = max(0.0, patient.clock() - listed[-1].time_us / 1e6)
    return ok(f"{listed[-1].kind} {listed[-1].snapshot}, {length_text(age_s)} ago")


def _local(text: str) -> str:
    return local_text(int(_seconds(text) * 1e6)).partition(".")[0]


def _seconds(text: str) -> float:
    from smsnapd.daemon.status import seconds

    return seconds(text)


CHECKS: Final = (
    Check("service", "unit", unit),
    Check("service", "daemon", daemon),
    Check("service", "last", recovery_point),
)
