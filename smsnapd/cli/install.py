"""`smsnap install` and `smsnap uninstall`: the systemd service, and `smsnap` in the path."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.resources import files
from pathlib import Path

import click

from smsnapd.cli import output
from smsnapd.cli.options import verb
from smsnapd.cli.session import Session
from smsnapd.daemon import protection
from smsnapd.errors import SmsnapError, UsageError

UNIT = "smsnapd.service"
_PLACE = Path("etc/systemd/system")
_WANTED = _PLACE / "multi-user.target.wants" / UNIT
"""The link that `systemctl enable` makes for WantedBy=multi-user.target (systemd.unit(5))."""

_COMMAND = Path("usr/local/bin/smsnap")
_OURS = "# Made by smsnap install."
_RUNTIME = Path("/run/systemd/system")
"""It is there if, and only if, systemd runs this system (sd_booted(3))."""

_CALL_S = 60
_PAUSES_S = (1, 5, 15)
"""Between tries of a call to a systemd that does not answer, as while a machine starts."""

INSTALL_EXAMPLES = """
sudo smsnap install -c ~/SageMaker/.smsnapd/smsnapd.toml
smsnap install --root /mnt/image         into another system, which is not running
smsnap install --lifecycle ~/SageMaker/lifecycle --wheelhouse s3://bucket/smsnapd/
"""
UNINSTALL_EXAMPLES = """
sudo smsnap uninstall            stops the daemon; configuration, state and repository stay
"""


@verb("install", examples=INSTALL_EXAMPLES)
@click.option(
    "--root", metavar="DIR", default="/", help="Install into the system in DIR; nothing is started."
)
@click.option(
    "--lifecycle",
    metavar="DIR",
    help="Install nothing: write a notebook's on-create and on-start for this configuration into DIR.",
)
@click.option(
    "--wheelhouse", metavar="PLACE", default="", help="With --lifecycle: where on-start finds wheels."
)
@click.option(
    "--at-boot", is_flag=True, help="As on-start says it: restore to a new volume first, if so told."
)
@click.option(
    "--restore", metavar="WHAT", default="", help="With --at-boot: `latest`, a time, VOLUME@TIME, `never`."
)
def install(root: str, lifecycle: str | None, wheelhouse: str, at_boot: bool, restore: str) -> int:
    """Make the daemon a systemd service, and start it.

    The unit runs the smsnapd that stands beside this program, with this configuration, and
    /usr/local/bin/smsnap is a way to this program. It may be said again: what has not changed stays,
    and the daemon is started anew only if the unit has. It is started without waiting.

    A notebook forgets the service at every stop. --lifecycle writes the scripts of a lifecycle
    configuration that put it back, and install smsnapd on notebooks that have none. On a volume that
    is new they also bring back what its tag smsnap-restore, or [restore] at_start, says.
    """
    session = Session.current()
    if (restore and not at_boot) or (wheelhouse and lifecycle is None):
        raise UsageError(
            "install", "--restore goes with --at-boot, --wheelhouse with --lifecycle", "see --help"
        )
    source = _source(session)
    if lifecycle is not None:
        return _write_scripts(session, source, Path(lifecycle), wheelhouse)
    if at_boot:
        return _boot(session, restore)
    from smsnapd.cli.firststart import recorded

    start = recorded(source.parent)
    if start is not None and start.is_under_way:
        why = f"{start.wanted} is being restored to the volume, and it would be backed up half restored"
        raise SmsnapError(
            "start the service", why, "it starts by itself after that: journalctl -t smsnapd-boot"
        )
    _install(session, Path(root))
    return 0


def _source(session: Session) -> Path:
    """The configuration file."""
    source = session.config.source
    if source is None:
        raise UsageError("install the service", "there is no configuration file", "name one with --config")
    return source.absolute()


def _write_scripts(session: Session, source: Path, directory: Path, wheelhouse: str) -> int:
    from smsnapd.cli.lifecycle import write_scripts

    written = write_scripts(directory, source, protection.volume_root(session.config), wheelhouse)
    if not session.options.quiet:
        for path, size_bytes in written:
            output.line(f"written: {path}, {size_bytes:,} bytes")
    return 0


def _boot(session: Session, told: str) -> int:
    """What a notebook's start needs: the command, then the restore if there is one, then the daemon."""
    from smsnapd.cli.boot import Boot

    boot = Boot(session, told)
    session = boot.session()
    _put_command(Path("/"), _source(session))
    try:
        status = boot.restore(lambda: _stop(Path("/")))
    except Exception:  # nobody waits here who could do something about it: at least the volume is protected
        _install(session, Path("/"))
        raise
    _install(session, Path("/"))
    return status


def _install(session: Session, root: Path) -> None:
    from smsnapd.daemon.plan import load_plan

    source = _source(session)
    load_plan(str(source))  # what the daemon would not start with is told here
    text = unit_text(_program(), source, protection.volume_root(session.config))
    is_new = _put(root / _PLACE / UNIT, text)
    _enable(root)
    _put_command(root, source)
    if root == Path("/"):
        _start(is_new)
    if not session.options.quiet:
        output.line(f"{'installed' if is_new else 'unchanged'}: {root / _PLACE / UNIT}")


@verb("uninstall", examples=UNINSTALL_EXAMPLES)
@click.option("--root", metavar="DIR", default="/", help="Remove it from the system in DIR.")
def uninstall(root: str) -> int:
    """Stop the daemon and remove its systemd service; configuration, state and repository stay.

    May be said again. A notebook's lifecycle configuration puts the service back at the next start.
    """
    session = Session.current()
    path = Path(root, _PLACE, UNIT)
    was_there = path.exists()
    if was_there:
        _stop(Path(root))
        Path(root, _WANTED).unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        if Path(root) == Path("/") and _RUNTIME.is_dir():
            _systemctl("daemon-reload")
    command = Path(root, _COMMAND)
    if _is_ours(command):
        command.unlink()
    if not session.options.quiet:
        output.line(f"{'removed' if was_there else 'not there'}: {path}")
    return 0


def unit_text(program: Path, config: Path, volume: Path) -> str:
    """The unit with everything filled in."""
    text = files("smsnapd.daemon").joinpath(UNIT).read_text(encoding="utf-8")
    values = {"@PROGRAM@": program, "@CONFIG@": config, "@VOLUME@": volume}
    for name, value in values.items():
        text = text.replace(name, quoted(str(value), is_command=name != "@VOLUME@"))
    return text


def quoted(text: str, *, is_command: bool) -> str:
    """One word for a unit file, whatever is in it (systemd.syntax(7); systemd.service(5))."""
    if any(ord(character) < 0x20 for character in text):
        raise UsageError("write the unit", f"{text!r} holds a control character", "use another path")
    text = text.replace("%", "%%").replace("\\", "\\\\").replace('"', '\\"')
    if is_command:
        text = text.replace("$", "$$")
    plain = set("/._-%=+,:@~")
    return text if all(character.isalnum() or character in plain for character in text) else f'"{text}"'


def _program() -> Path:
    """The smsnapd that was installed with this program. Links stay: a venv's Python is one."""
    program = Path(sys.executable).absolute().parent / "smsnapd"
    if not os.access(program, os.X_OK):
        hint = "install the package there: pip install smsnapd"
        raise UsageError("install the service", f"there is no {program}", hint)
    return program


def _put(path: Path, text: str, mode: int = 0o644) -> bool:
    """Write a file, whole or not at all; whether it is new."""
    try:
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False) as file:
            file.write(text)
            os.fchmod(file.fileno(), mode)
        os.replace(file.name, path)
    except OSError as error:
        raise _not_written(path, error) from error
    return True


def _enable(root: Path) -> None:
    """Have it started with the system, by the link of `systemctl enable`, which needs systemd to answer."""
    link = root / _WANTED
    try:
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(Path("/") / _PLACE / UNIT)
    except OSError as error:
        raise _not_written(link, error) from error


def _put_command(root: Path, source: Path) -> None:
    """`smsnap` in everybody's path, with this configuration unless another is named; a foreign one stays.

    It goes through sudo for who may not read the configuration, whose secrets are root's.
    """
    path = root / _COMMAND
    if path.exists() and not _is_ours(path):
        return
    program = Path(sys.executable).absolute().parent / "smsnap"
    text = f"""#!/bin/sh
{_OURS}
SMSNAP_CONFIG=${{SMSNAP_CONFIG:-{shlex.quote(str(source))}}}
export SMSNAP_CONFIG
[ -r "$SMSNAP_CONFIG" ] || [ "$(id -u)" = 0 ] || exec sudo -- "$0" "$@"
exec {shlex.quote(str(program))} "$@"
"""
    _put(path, text, 0o755)


def _is_ours(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return _OURS.encode() in file.read(256)
    except OSError:
        return False


def _not_written(path: Path, error: OSError) -> SmsnapError:
    return SmsnapError(f"write {path}", error.strerror or str(error), "run as root: sudo smsnap install")


def _start(is_new: bool) -> None:
    if not _RUNTIME.is_dir():
        raise UsageError(
            "start the service", "systemd does not run this system", "give --root DIR, or run smsnapd"
        )
    _systemctl("daemon-reload")
    _systemctl("--no-block", "restart" if is_new else "start", UNIT)


def _stop(root: Path) -> None:
    """Stop the daemon of the system that runs, if it has the unit."""
    if root == Path("/") and _RUNTIME.is_dir() and (root / _PLACE / UNIT).exists():
        _systemctl("stop", UNIT, timeout_s=None)


def _systemctl(*arguments: str, timeout_s: float | None = _CALL_S) -> None:
    """Run systemctl. For root it is tried again: a systemd that is starting a machine may not answer."""
    for pause_s in _PAUSES_S if os.geteuid() == 0 else ():
        try:
            _call_systemctl(arguments, timeout_s)
        except _FailedCallError:
            time.sleep(pause_s)
        else:
            return
    _call_systemctl(arguments, timeout_s)


class _FailedCallError(SmsnapError):
    """systemctl ended with an error, or did not end."""


def _call_systemctl(arguments: tuple[str, ...], timeout_s: float | None) -> None:
    what = f"run systemctl {' '.join(arguments)}"
    program = shutil.which("systemctl")
    if program is None:
        raise SmsnapError(what, "there is no systemctl", "run smsnapd by other means")
    try:
        done = subprocess.run(
            [program, "--quiet", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired as error:
        raise _FailedCallError(what, f"systemd did not answer within {timeout_s:.0f} s") from error
    if done.returncode != 0:
        why = " ".join(done.stderr.split()) or f"status {done.returncode}"
        raise _FailedCallError(what, why, "run as root")
