"""The Python distributions of an environment, from their metadata on disk; no Python of it is run.

Sources: the core metadata specification, PEP 376 (dist-info), PEP 610 (direct_url.json), and setuptools'
egg-info and egg-link of before.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from smsnapd.engine.environment.reading import directories_of, entries_of, read_text
from smsnapd.engine.environment.report import Package
from smsnapd.engine.environment.words import canonical_name, is_package_name, is_version, without_secrets
from smsnapd.model import path_text

PACKAGES: Final = 10_000
METADATA_BYTES: Final = 4 * 1024 * 1024
_LIB: Final = re.compile(rb"python[23]\.[0-9]{1,3}t?")
_HEADER: Final = re.compile(r"(Name|Version):[ \t]*(.*)")
_INSTALLER: Final = re.compile(r"[A-Za-z0-9._-]{1,40}")


def site_directories(prefix: bytes) -> list[bytes]:
    """The site-packages directories of an environment, absolute, `lib64` too where that is no link."""
    return [
        os.path.join(prefix, lib, python, b"site-packages")
        for lib in directories_of(prefix)
        if lib in (b"lib", b"lib64")
        for python in directories_of(os.path.join(prefix, lib))
        if _LIB.fullmatch(python)
    ]


def packages_of(prefix: bytes, notes: list[str]) -> tuple[Package, ...]:
    """All distributions of an environment, sorted; what cannot be understood goes to `notes`.

    Of two of one name the one that was installed later counts.
    """
    found: dict[str, tuple[float, Package]] = {}
    for site in site_directories(prefix):
        for path, package in _packages_in(site, notes):
            key, installed_s = canonical_name(package.name), _modified_s(path)
            if key in found and (found[key][1].version != package.version):
                notes.append(f"{path_text(path)}: {package.name} is there in two versions")
            if key not in found or found[key][0] < installed_s:
                found[key] = installed_s, package
            if len(found) >= PACKAGES:
                notes.append(f"{path_text(site)}: more than {PACKAGES:,} packages, the rest is not told of")
                break
    return tuple(found[key][1] for key in sorted(found))


def _packages_in(site: bytes, notes: list[str]) -> Iterator[tuple[bytes, Package]]:
    for entry in entries_of(site):
        read = next((read for ending, read in _READERS.items() if entry.name.endswith(ending)), None)
        if read is None:
            continue
        try:
            package = read(entry.path)
        except (OSError, ValueError) as error:
            notes.append(f"{path_text(entry.path)} was not understood: {error}")
            continue
        if package is not None:
            yield entry.path, package


def _dist_info(path: bytes) -> Package | None:
    name, version = _name_and_version(os.path.join(path, b"METADATA"))
    source, editable = _direct_url(os.path.join(path, b"direct_url.json"))
    return Package(name, version, source, editable, _installer(os.path.join(path, b"INSTALLER")))


def _egg_info(path: bytes) -> Package | None:
    """An old install; a directory, or the metadata itself."""
    is_file = not os.path.isdir(path)
    name, version = _name_and_version(path if is_file else os.path.join(path, b"PKG-INFO"))
    return Package(name, version)


def _egg_link(path: bytes) -> Package | None:
    """`setup.py develop` of old: the first line is the project's directory."""
    place = read_text(path, 4096).partition("\n")[0].strip()
    name = os.path.basename(path).decode("utf-8", "replace").removesuffix(".egg-link")
    if not is_package_name(name):
        raise ValueError("its name is no package's")
    return Package(name, "0", "file://" + path_text(os.fsencode(place)), editable=True)


_READERS: Final = {b".dist-info": _dist_info, b".egg-info": _egg_info, b".egg-link": _egg_link}


def _name_and_version(path: bytes) -> tuple[str, str]:
    """From the headers of a metadata file, which an empty line ends."""
    found: dict[str, str] = {}
    for line in read_text(path, METADATA_BYTES).splitlines():
        if not line:
            break
        match = _HEADER.fullmatch(line)
        if match:
            found.setdefault(match[1], match[2].strip())
    name, version = found.get("Name", ""), found.get("Version", "")
    if not is_package_name(name):
        raise ValueError("it has no name that a package can have")
    if not is_version(version):
        raise ValueError("it has no version that a package can have")
    return name, version


def _installer(path: bytes) -> str:
    try:
        text = read_text(path, 4096).strip()
    except OSError:
        return ""
    return text if _INSTALLER.fullmatch(text) else ""


def _direct_url(path: bytes) -> tuple[str, bool]:
    """The origin as a requirement has it, and whether it is an editable install (PEP 610)."""
    try:
        origin = msgspec.json.decode(read_text(path))
    except FileNotFoundError:
        return "", False
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(f"its direct_url.json is no JSON: {error}") from error
    if not isinstance(origin, dict) or not isinstance(origin.get("url"), str):
        raise ValueError("its direct_url.json has no URL")
    directory = origin.get("dir_info")
    editable = isinstance(directory, dict) and directory.get("editable") is True
    return _requirement_url(origin), editable


def _requirement_url(origin: dict[str, Any]) -> str:
    url = without_secrets(origin["url"])
    vcs, archive, below = origin.get("vcs_info"), origin.get("archive_info"), origin.get("subdirectory")
    is_plain = isinstance(below, str) and re.fullmatch(r"[A-Za-z0-9_./-]{1,500}", below)
    fragments = [f"subdirectory={below}"] if is_plain else []
    if isinstance(vcs, dict) and re.fullmatch(r"git|hg|bzr|svn", str(vcs.get("vcs"))):
        url = f"{vcs['vcs']}+{url}"
        commit = vcs.get("commit_id")
        url += f"@{commit}" if isinstance(commit, str) and re.fullmatch(r"[0-9a-f]{7,64}", commit) else ""
    elif isinstance(archive, dict):
        digest = archive.get("hash")
        digests = archive.get("hashes")
        if isinstance(digests, dict) and isinstance(digests.get("sha256"), str):
            digest = f"sha256={digests['sha256']}"
        if isinstance(digest, str) and re.fullmatch(r"sha256=[0-9a-f]{64}", digest):
            fragments.insert(0, digest)
    return url + ("#" + "&".join(fragments) if fragments else "")


def _modified_s(path: bytes) -> float:
    try:
        return os.lstat(path).st_mtime
    except OSError:
        return 0.0
