"""Virtual and conda environments made again."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from typing import Final

from smsnapd.engine.environment.installs import Installer
from smsnapd.engine.environment.interpreters import PROBE_S, find_conda, find_python
from smsnapd.engine.environment.pythons import read_conda, read_venv
from smsnapd.engine.environment.reading import entries_of
from smsnapd.engine.environment.rebuilding import CommandError, Item, Site
from smsnapd.engine.environment.report import Conda, CondaPackage, Venv
from smsnapd.engine.environment.words import is_channel, is_conda_spec, minor_of
from smsnapd.model import path_text

_RUNS: Final = "import sys; print('%d.%d' % sys.version_info[:2])"


def rebuild_venv(venv: Venv, site: Site) -> Item:
    """Make it again with the Python that it had; one that is there gets what it lacks."""
    item = Item("venv", venv.path)
    place = site.place(venv.path)
    minor = minor_of(venv.python)
    if place is None or not minor:
        item.fail("its place leads out of the target" if place is None else "no Python has its version")
        return item
    try:
        _fill(item, venv, place, minor, site)
    except (CommandError, OSError) as error:
        item.fail(str(error))
    return item


def _fill(item: Item, venv: Venv, place: bytes, minor: str, site: Site) -> None:
    """Make it if it is not there or its Python is gone; then its packages."""
    is_new = not os.path.lexists(place) or not os.listdir(place)
    if not is_new:
        _check_venv(place, minor)
    installer = Installer(place, venv.indexes, item, site, anyway=venv.system_site_packages)
    before = installer.names
    is_made = is_new or not _runs(place, minor, site)
    if is_made:
        _make_venv(item, venv, place, minor, site)
    changed = installer.install(venv.packages) or is_made
    if is_made:
        installer.remove_others(venv.packages, before)
    item.standing = "made" if is_new else "brought up to date" if changed else "there"
    installer.compare(venv.packages)


def _check_venv(place: bytes, minor: str) -> None:
    """CommandError if what is there is no virtual environment, or of another Python."""
    found = read_venv(place, path_text(place), b"/nonexistent", [])
    if found is None:
        raise CommandError("something else is there")
    if minor_of(found.python) != minor:
        raise CommandError(f"it is there with Python {found.python}; move it away to have it made anew")


def _runs(place: bytes, minor: str, site: Site) -> bool:
    """Whether its Python is there still: that lies elsewhere, and may be gone with an old instance."""
    try:
        return (
            site.ask([os.path.join(place, b"bin/python"), "-I", "-c", _RUNS], seconds=PROBE_S).strip()
            == minor
        )
    except CommandError:
        return False


def _make_venv(item: Item, venv: Venv, place: bytes, minor: str, site: Site) -> None:
    python = find_python(minor, site)
    if not python:
        raise CommandError(
            f"it needs Python {minor}, and none was found: install it, or put it into the PATH"
        )
    options = ["--system-site-packages"] if venv.system_site_packages else []
    options += ["--prompt", venv.prompt] if venv.prompt else []
    _make_parent(place, site)
    _clear_links(place, site)
    site.run(item, [python, "-m", "venv", *options, place])


def _clear_links(place: bytes, site: Site) -> None:
    """Remove the links to a Python that is gone, over which venv would stumble."""
    found = [entry for entry in entries_of(os.path.join(place, b"bin")) if entry.name.startswith(b"python")]
    gone = [entry.path for entry in found if entry.is_symlink() and not os.path.exists(entry.path)]
    if gone and not site.dry_run:
        site.ask(["rm", "-f", "--", *gone])


def _make_parent(place: bytes, site: Site) -> None:
    """The directories above, made by the owner."""
    parent = os.path.dirname(place)
    if not site.dry_run and not os.path.isdir(parent):
        site.ask(["mkdir", "-p", "--", parent])


def rebuild_conda(conda: Conda, site: Site) -> Item:
    """Make it again: the very same packages, else what was asked for; then what pip had put into it."""
    item = Item("conda", conda.path)
    place = site.place(conda.path)
    if place is None:
        item.fail("its place leads out of the target")
        return item
    is_new = not os.path.isdir(os.path.join(place, b"conda-meta"))
    try:
        if is_new:
            _make_conda(item, conda, place, site)
        installer = Installer(place, conda.indexes, item, site)
        changed = bool(conda.pip) and installer.install(conda.pip)
        item.standing = "made" if is_new else "brought up to date" if changed else "there"
        installer.compare(conda.pip)
        _compare_conda(item, conda.packages, place, site)
    except (CommandError, OSError) as error:
        item.fail(str(error))
    return item


def _make_conda(item: Item, conda: Conda, place: bytes, site: Site) -> None:
    program = find_conda(site)
    if not program:
        raise CommandError("it needs conda, mamba or micromamba, and none was found")
    if os.path.lexists(place) and (os.path.islink(place) or os.listdir(place)):
        raise CommandError("something else is there")
    _make_parent(place, site)
    create: list[str | bytes] = [program, "create", "--yes", "--quiet", "--prefix", place]
    explicit = explicit_list(conda.packages)
    if explicit:
        try:
            _create_explicit(item, create, explicit, site)
            return
        except CommandError as error:
            item.notes.append(f"the very same packages are not to be had: {error}")
    specs = [spec for spec in conda.requested if is_conda_spec(spec)]
    if not specs:
        raise CommandError("neither are its packages to be had, nor does its history say what was asked for")
    channels = [word for url in conda.channels if is_channel(url) for word in ("--channel", url)]
    site.run(item, [*create, *channels, *specs])


def explicit_list(packages: Sequence[CondaPackage]) -> str:
    """The file that `conda create --file` takes; "" if it is not known where each came from."""
    if not packages or not all(is_channel(package.url) for package in packages):
        return ""
    lines = [package.url + (f"#{package.md5}" if package.md5 else "") for package in packages]
    return "\n".join(["@EXPLICIT", *lines, ""])


def _create_explicit(item: Item, create: Sequence[str | bytes], explicit: str, site: Site) -> None:
    with tempfile.NamedTemporaryFile("w", prefix="smsnap-", suffix=".txt") as file:
        file.write(explicit)
        file.flush()
        os.chmod(file.name, 0o644)  # the owner's conda reads it; it holds no secret
        site.run(item, [*create, "--file", file.name])


def _compare_conda(item: Item, packages: Sequence[CondaPackage], place: bytes, site: Site) -> None:
    if site.dry_run:
        return
    there = {package.name: package for package in read_conda(place, "", b"/nonexistent", []).packages}
    for package in packages:
        found = there.get(package.name)
        if found is None:
            item.fail(f"{package.name} {package.version} is not there")
        elif (found.version, found.build) != (package.version, package.build):
            had = f"{package.version} {package.build}"
            item.fail(f"{package.name} is {found.version} {found.build} and not {had}")
