"""Virtual environments and conda environments, as their own files tell of them; nothing of them is run."""

from __future__ import annotations

import ast
import configparser
import os
import re
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from smsnapd.engine.environment.packages import packages_of
from smsnapd.engine.environment.reading import entries_of, read_file, read_text
from smsnapd.engine.environment.report import Conda, CondaPackage, Venv
from smsnapd.engine.environment.words import (
    is_conda_name,
    is_conda_spec,
    is_version,
    is_web_address,
    minor_of,
    without_secrets,
)
from smsnapd.model import path_text

CONDA_RECORD_BYTES: Final = 32 * 1024 * 1024
CONDA_PACKAGES: Final = 10_000
_UPDATE: Final = re.compile(r"# (update|install|create|remove|neutered) specs: (\[.*\])")
_MD5: Final = re.compile(r"[0-9a-f]{32}")


def read_venv(path: bytes, shown: str, user_home: bytes, notes: list[str]) -> Venv | None:
    """The virtual environment at `path`, told of as `shown`; None if its pyvenv.cfg says no version."""
    try:
        settings = _settings(read_text(os.path.join(path, b"pyvenv.cfg"), 65536))
    except OSError as error:
        notes.append(f"{shown}: its pyvenv.cfg could not be read: {error}")
        return None
    version = settings.get("version") or settings.get("version_info", "")
    if not minor_of(version):
        notes.append(f"{shown}: its pyvenv.cfg tells no version of Python")
        return None
    prompt = settings.get("prompt", "").strip("'\"")
    return Venv(
        path=shown,
        python=version,
        packages=packages_of(path, notes),
        system_site_packages=settings.get("include-system-site-packages", "").lower() == "true",
        prompt=prompt if re.fullmatch(r"[A-Za-z0-9_. ()-]{1,80}", prompt) else "",
        indexes=pip_indexes(path, user_home),
    )


def _settings(text: str) -> dict[str, str]:
    """`key = value` lines, as the standard library's site.py reads them."""
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
    return {key.strip().lower(): value.strip() for key, _, value in pairs}


def pip_indexes(prefix: bytes, user_home: bytes) -> tuple[str, ...]:
    """What indexes pip is configured with for an environment, the main one first; () is pip's own.

    From the files that pip reads, the more special ones first.
    """
    files = [
        os.path.join(prefix, b"pip.conf"),
        os.path.join(user_home, b".config/pip/pip.conf"),
        os.path.join(user_home, b".pip/pip.conf"),
        b"/etc/pip.conf",
        b"/etc/xdg/pip/pip.conf",
    ]
    main = ""
    extra: list[str] = []
    for file in files:
        parser = configparser.RawConfigParser(strict=False)
        try:
            parser.read_string(read_text(file, 65536))
        except (OSError, configparser.Error):
            continue
        for section in ("install", "global"):
            main = main or parser.get(section, "index-url", fallback="")
            extra += parser.get(section, "extra-index-url", fallback="").split()
    told = [without_secrets(url) for url in ([main] if main else []) + extra]
    return tuple(dict.fromkeys(url for url in told if is_web_address(url)))


class _Record(msgspec.Struct):
    """What is needed of a file in conda-meta."""

    name: str
    version: str
    build: str = ""
    url: str = ""
    channel: str = ""
    md5: str | None = None


_decode_record = msgspec.json.Decoder(_Record).decode


def read_conda(path: bytes, shown: str, user_home: bytes, notes: list[str]) -> Conda:
    """The conda environment at `path`, told of as `shown`."""
    packages = sorted(_conda_packages(path, notes), key=lambda package: package.name)
    known = {package.name.lower().replace("_", "-") for package in packages}
    try:
        requested = requested_specs(read_text(os.path.join(path, b"conda-meta/history"), CONDA_RECORD_BYTES))
    except OSError:
        requested = ()
    others = [package for package in packages_of(path, notes) if package.installer != "conda"]
    return Conda(
        path=shown,
        packages=tuple(packages),
        requested=requested,
        channels=_channels(packages),
        pip=tuple(package for package in others if package.name.lower().replace("_", "-") not in known),
        indexes=pip_indexes(path, user_home),
    )


def _conda_packages(path: bytes, notes: list[str]) -> Iterator[CondaPackage]:
    count = 0
    for entry in entries_of(os.path.join(path, b"conda-meta")):
        if not entry.name.endswith(b".json"):
            continue
        count += 1
        if count > CONDA_PACKAGES:
            notes.append(f"{path_text(path)}: more than {CONDA_PACKAGES:,} conda packages")
            return
        try:
            record = _decode_record(read_file(entry.path, CONDA_RECORD_BYTES))
        except (OSError, msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            notes.append(f"{path_text(entry.path)} was not understood: {error}")
            continue
        if not is_conda_name(record.name) or not is_version(record.version):
            notes.append(f"{path_text(entry.path)} names no package")
            continue
        yield _conda_package(record)


def _conda_package(record: _Record) -> CondaPackage:
    url = without_secrets(record.url) if record.url else ""
    build = record.build if is_version(record.build) else ""
    md5 = record.md5 if record.md5 and _MD5.fullmatch(record.md5) else ""
    return CondaPackage(record.name, record.version, build, "" if url == "…" else url, md5)


def requested_specs(history: str) -> tuple[str, ...]:
    """What a person asked for, of a conda-meta/history: the last spec of each name that was not removed."""
    wanted: dict[str, str] = {}
    for line in history.splitlines():
        match = _UPDATE.fullmatch(line) if len(line) < 100_000 else None
        for spec in _listed(match[2]) if match else ():
            name = re.split(r"[ =<>!~\[|,]", spec.rpartition("::")[2], maxsplit=1)[0]
            if match and match[1] == "remove":
                wanted.pop(name, None)
            elif is_conda_spec(spec):
                wanted[name] = spec
    return tuple(wanted.values())


def _listed(text: str) -> Sequence[str]:
    """The texts of a list as Python writes it."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return ()
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else ()


def _channels(packages: Sequence[CondaPackage]) -> tuple[str, ...]:
    """Where the packages came from: their URLs less the platform and the file."""
    found = (package.url.rsplit("/", 2)[0] for package in packages if package.url.count("/") > 3)
    return tuple(dict.fromkeys(found))
