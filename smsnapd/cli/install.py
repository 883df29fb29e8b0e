"""`smsnap install` and `smsnap uninstall`: the systemd service."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
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
_RUNTIME = Path("/run/systemd/system")
"""It is there if, and only if, systemd runs this system (sd_booted(3))."""
INSTALL_EXAMPLES = """
sudo smsnap install -c ~/SageMaker/.smsnapd/smsnapd.toml
smsnap install --root /mnt/image         into another system, which is not running
"""
UNINSTALL_EXAMPLES = """
sudo smsnap uninstall            stops the daemon; configuration, state and repository stay
"""


@verb("install", examples=INSTALL_EXAMPLES)
@click.option(
    "--root", metavar="DIR", default="/", help="Install into the system in DIR; nothing is started."
)
def install(root: str) -> int:
    """Make the daemon a systemd service, and start it.

    The unit runs the smsnapd that stands beside this program, with this configuration. It may be said
    again: what has not changed stays, and the daemon is started anew only if the unit has. It is
    started without waiting, so that this can stand in a lifecycle script.
    """
    from smsnapd.daemon.plan import load_plan

    session = Session.current()
    source = session.config.source
    if source is None:
        raise UsageError("install the service", "there is no configuration file", "name one with --config")
    load_plan(str(source))  # what the daemon would not start with is told here
    text = unit_text(_program(), source.absolute(), protection.volume_root(session.config))
    is_new = _put(Path(root, _PLACE, UNIT), text)
    if Path(root) != Path("/"):
        _systemctl("--root", root, "enable", UNIT)
    else:
        _start(is_new)
    if not session.options.quiet:
        output.line(f"{'installed' if is_new else 'unchanged'}: {Path(root, _PLACE, UNIT)}")
    return 0


@verb("uninstall", examples=UNINSTALL_EXAMPLES)
@click.option("--root", metavar="DIR", default="/", help="Remove it from the system in DIR.")
def uninstall(root: str) -> int:
    """Stop the daemon and remove its systemd service; configuration, state and repository stay.

    May be said again.
    """
    session = Session.current()
    path = Path(root, _PLACE, UNIT)
    was_there = path.exists()
    if was_there:
        if Path(root) != Path("/"):
            _systemctl("--root", root, "disable", UNIT)
        elif _RUNTIME.is_dir():
            _systemctl("disable", "--now", UNIT)
        path.unlink(missing_ok=True)
        if Path(root) == Path("/") and _RUNTIME.is_dir():
            _systemctl("daemon-reload")
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


def _put(path: Path, text: str) -> bool:
    """Write the unit, whole or not at all; whether it is new."""
    try:
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False) as file:
            file.write(text)
            os.fchmod(file.fileno(), 0o644)
        os.replace(file.name, path)
    except OSError as error:
        raise SmsnapError(
            f"write {path}", error.strerror or str(error), "run as root: sudo smsnap install"
        ) from error
    return True


def _start(is_new: bool) -> None:
    if not _RUNTIME.is_dir():
        raise UsageError(
            "start the service", "systemd does not run this system", "give --root DIR, or run smsnapd"
        )
    _systemctl("daemon-reload")
    _systemctl("enable", UNIT)
    _systemctl("--no-block", "restart" if is_new else "start", UNIT)


def _systemctl(*arguments: str) -> None:
    what = f"run systemctl {' '.join(arguments)}"
    program = shutil.which("systemctl")
    if program is None:
        raise SmsnapError(what, "there is no systemctl", "run smsnapd by other means")
    done = subprocess.run(
        [program, "--quiet", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SmsnapError(what, " ".join(done.stderr.split()) or f"status {done.returncode}", "run as root")
