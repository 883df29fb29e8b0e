"""`smsnap restore --remount`: onto the very volume that this program and its configuration lie on."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from smsnapd.cli.session import Session
from smsnapd.errors import SmsnapError, TargetError, UsageError
from smsnapd.model import path_text
from smsnapd.volume.departure import Departed, depart, departed, remove_stage
from smsnapd.volume.mounts import find_mount, mounted_devices
from smsnapd.volume.takeover import Taken, taken

_FILES_IN_ENVIRONMENT = ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_CA_BUNDLE", "SSL_CERT_FILE")


def move_off(session: Session, device: str) -> Departed | None:
    """Where the program came from; if it has not moved yet it does, and begins again from elsewhere.

    None if nothing is mounted from the device, as after a run that was cut off.
    """
    found = departed()
    if found is not None:
        return found
    try:
        number = os.stat(device).st_rdev
    except OSError as error:
        raise UsageError(f"find {device}", error.strerror or str(error)) from error
    points = mounted_devices().get(f"{os.major(number)}:{os.minor(number)}")
    if not points:
        return None
    _check_repository(session, os.stat(points[0]).st_dev)
    if not session.options.quiet:
        print(f"smsnap: moving off {path_text(points[0])}", file=sys.stderr)
    depart(find_mount(points[0]).mount_point, [os.fsencode(path) for path in _needed(session)])


def _check_repository(session: Session, device: int) -> None:
    """TargetError if the repository would be overwritten."""
    parts = urlsplit(session.settings.url)
    place = unquote(parts.path)
    if parts.scheme == "file" and os.path.exists(place) and os.stat(place).st_dev == device:
        what, why = f"restore from {session.settings.url}", "the repository lies on the volume itself"
        raise TargetError(what, why, "copy it elsewhere, and give that with --repository")


def _needed(session: Session) -> Iterator[Path]:
    """Files that a restore reads: the configuration, what that and the environment name."""
    config, options = session.config, session.options
    if config.source is not None:
        yield config.source
    for section in (config.encryption, config.repository):
        for field in dataclasses.fields(section):
            value = getattr(section, field.name)
            if isinstance(value, Path):
                yield value.expanduser().absolute()
    if config.encryption.passphrase_command:
        yield from (Path(word) for word in config.encryption.passphrase_command if Path(word).is_file())
    if options.passphrase_file is not None:
        yield Path(options.passphrase_file).expanduser().absolute()
    yield from (Path(os.environ[name]).absolute() for name in _FILES_IN_ENVIRONMENT if name in os.environ)
    yield Path.home() / ".aws"


@contextlib.contextmanager
def taken_over(session: Session, found: Departed) -> Iterator[Taken]:
    """The device, taken from the volume, for as long as it is written; then what to do next is told."""
    if not session.options.quiet:
        again = shlex.join([sys.executable, *sys.orig_argv[1:]])
        print(f"smsnap: taking {found.point} from its users; if this is cut off, run:", file=sys.stderr)
        print(f"  mount --bind {found.stage} {found.point} && {again}", file=sys.stderr)
    try:
        with taken(found) as device:
            yield device
    except SmsnapError as error:
        if os.path.ismount(found.point) and not error.hint:
            error.hint = "the same command can be given again"
        raise
    state = "" if device.is_unmounted else ", and do not use it before that: what it shows is gone"
    print(f"smsnap: {found.point} is restored: restart the machine{state}", file=sys.stderr)


def leave(found: Departed) -> None:
    """Remove what the program was copied to; the last thing that it does."""
    remove_stage(found)
