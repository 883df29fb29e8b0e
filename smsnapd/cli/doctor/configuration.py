"""The configuration: which file it is, who may change it, and who may read the secrets that it names."""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from smsnapd.cli.doctor.findings import Check, Judged, fail, ok, warn
from smsnapd.cli.doctor.patient import Patient, lies_on
from smsnapd.daemon.plan import load_plan

_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH
_OTHERS_READ: Final = 0o077


def file(patient: Patient) -> Iterator[Judged]:
    """That there is a file, that it is right, and that nobody else can make us run his commands."""
    source = patient.config.examine().source
    if source is None:
        mend = "write one as README.md shows, and name it with --config or $SMSNAP_CONFIG"
        yield warn("there is no configuration file: the daemon cannot run without", mend)
        return
    path = source.absolute()
    load_plan(str(path))
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & _OTHERS_WRITE:
        told = f"{path} can be changed by others (mode {mode:04o}), and it can name commands to run"
        yield fail(told, f"chmod go-w {shlex.quote(str(path))}")
    elif patient.notebook.use() is not None and not lies_on(path, patient.device_of_volume()):
        root = os.fsdecode(patient.root.use())
        told = f"{path} lies on the root volume, which is reset at every start of the notebook"
        yield warn(told, f"keep it on the volume: mv {shlex.quote(str(path))} {shlex.quote(root)}/.smsnapd/")
    else:
        yield ok(f"{path}, mode {mode:04o}")


def secrets(patient: Patient) -> Iterator[Judged]:
    """Where the key or passphrase comes from, and that it is its owner's alone."""
    encryption = patient.config.use().encryption
    files = {"the write key": encryption.write_key_file, "the passphrase": encryption.passphrase_file}
    for name, path in files.items():
        if path is not None:
            yield _secret(name, path)
    if encryption.passphrase_command:
        yield ok(f"the passphrase comes from the command {encryption.passphrase_command[0]}")
    if os.environ.get("SMSNAP_PASSPHRASE"):
        yield ok("the passphrase is in $SMSNAP_PASSPHRASE, which the daemon does not see")
    if not any(files.values()) and not encryption.passphrase_command:
        mend = "write passphrase_file, or better write_key_file, under [encryption]"
        yield warn(
            "no write key and no passphrase is configured: the daemon cannot open the repository", mend
        )


def _secret(name: str, path: Path) -> Judged:
    quoted = shlex.quote(str(path))
    try:
        status = path.stat()
    except OSError as error:
        return fail(f"{name} in {path} cannot be read: {error.strerror}", f"ls -l {quoted}")
    mode = stat.S_IMODE(status.st_mode)
    if stat.S_ISREG(status.st_mode) and mode & _OTHERS_READ:
        return fail(f"{name} in {path} can be read by others (mode {mode:04o})", f"chmod 600 {quoted}")
    if not os.access(path, os.R_OK):
        return fail(f"{name} in {path} cannot be read by this user", "run as root: sudo smsnap doctor")
    return ok(f"{name} is in {path}, mode {mode:04o}")


CHECKS: Final = (Check("configuration", "file", file), Check("configuration", "secrets", secrets))
