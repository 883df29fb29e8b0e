"""A notebook's lifecycle scripts, filled in for a configuration and checked against what SageMaker takes."""

from __future__ import annotations

import base64
import re
import shlex
import tomllib
from importlib.resources import files
from pathlib import Path

from smsnapd.errors import SmsnapError, UsageError

SCRIPTS = ("on-create", "on-start")
LIMIT = 16_384
"""Characters of base64 that CreateNotebookInstanceLifecycleConfig takes for one script."""

_END = "SMSNAPD_TOML"
_TEXT = re.compile(rf"(<<'{_END}'\n)({_END}\n)")


def write_scripts(directory: Path, config: Path, volume: Path, wheelhouse: str) -> list[tuple[Path, int]]:
    """Write the scripts into `directory`, made if need be; their paths and sizes in bytes.

    The text of `config` goes into on-start, without its comments if it does not fit with them. `wheelhouse`
    is a directory, an s3:// URL or "". UsageError if it does not fit at all, SmsnapError if it cannot be read
    or written.
    """
    what = f"write lifecycle scripts to {directory}"
    try:
        text = config.read_text(encoding="utf-8")
        scripts = {name: filled(name, text, volume, wheelhouse) for name in SCRIPTS}
        directory.mkdir(parents=True, exist_ok=True)
        return [(directory / name, _write(directory / name, script)) for name, script in scripts.items()]
    except OSError as error:
        raise SmsnapError(
            what, error.strerror or str(error), "give a directory that you may write to"
        ) from error


def filled(name: str, config_text: str, volume: Path, wheelhouse: str) -> str:
    """The script `name` with its settings; UsageError if they do not fit into one."""
    script = template(name)
    script = _with_setting(script, "VOLUME", str(volume))
    script = _with_setting(script, "WHEELHOUSE", wheelhouse)
    what = f"put the configuration into {name}"
    if f"\n{_END}\n" in f"\n{config_text}\n" or "\0" in config_text:
        raise UsageError(what, f"it has a line {_END}, or a NUL", "remove that")
    for text in (config_text, _without_comments(config_text)):
        whole = _with_text(script, text)
        if encoded_size(whole) <= LIMIT:
            return whole
    hint = "keep it in S3, and name it there in CONFIGURATION of on-start"
    raise UsageError(what, f"SageMaker takes {LIMIT:,} characters of base64, and it is longer", hint)


def _with_setting(script: str, setting: str, value: str) -> str:
    """The script with a line SETTING=… of its own for `value`; as it is if it has no such setting."""
    line = f"{setting}={shlex.quote(value)}"
    return re.sub(rf"(?m)^{setting}=.*$", line.replace("\\", "\\\\"), script, count=1)


def _with_text(script: str, text: str) -> str:
    """The script with a configuration between the lines that are there for it, if they are."""
    place = _TEXT.search(script)
    return script if place is None else f"{script[: place.end(1)]}{text.rstrip()}\n{script[place.start(2) :]}"


def template(name: str) -> str:
    """A script as it is before anything is filled in."""
    return files("smsnapd.daemon").joinpath("lifecycle", name).read_text(encoding="utf-8")


def encoded_size(script: str) -> int:
    """The length of a script as it is sent."""
    return len(base64.b64encode(script.encode()))


def _without_comments(text: str) -> str:
    """The same configuration without lines that are only comments; as it was if they are none."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    shorter = "\n".join(lines) + "\n"
    try:
        return shorter if tomllib.loads(shorter) == tomllib.loads(text) else text
    except tomllib.TOMLDecodeError:
        return text


def _write(path: Path, script: str) -> int:
    path.touch(mode=0o700)
    path.write_text(script, encoding="utf-8")
    return len(script.encode())
