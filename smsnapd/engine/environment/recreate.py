"""Making everything of a report again on a machine: repositories, environments, kernels, in this order."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from smsnapd.engine.environment.clones import BringBack, rebuild_repository
from smsnapd.engine.environment.environments import rebuild_conda, rebuild_venv
from smsnapd.engine.environment.jupyter import extensions_of
from smsnapd.engine.environment.rebuilding import CommandError, Item, Site
from smsnapd.engine.environment.report import Kernel, Report
from smsnapd.engine.environment.words import is_package_name, raw
from smsnapd.model import path_text

_USERS: Final = "/.local/share/jupyter/kernels/"


@dataclass(frozen=True)
class RecreateRequest:
    """Where the volume is now, and what of the report is wanted.

    `only` are paths of the report, () all; with `outside` what did not lie on the volume is made too.
    """

    target: bytes
    only: tuple[bytes, ...] = ()
    outside: bool = False
    dry_run: bool = False


def recreate(
    report: Report, request: RecreateRequest, bring_back: BringBack, told: Callable[[str], None]
) -> Iterator[Item]:
    """Make it all again; yields what became of each. May be repeated: what is there is left as it is.

    `bring_back` brings a path of the volume back from the backup; `told` hears of each command.
    """
    for item in _made(report, request, bring_back, told):
        if item.problems:
            item.standing = "failed"
        yield item


def _made(
    report: Report, request: RecreateRequest, bring_back: BringBack, told: Callable[[str], None]
) -> Iterator[Item]:
    site = Site.at(request.target, report.root, dry_run=request.dry_run, told=told)
    for repository in report.repositories:
        if _is_wanted(repository.path, request):
            yield rebuild_repository(repository, site, bring_back)
    for conda in report.condas:
        if _is_wanted(conda.path, request):
            yield _with_extensions(rebuild_conda(conda, site), report, site)
    for venv in report.venvs:
        if _is_wanted(venv.path, request):
            yield _with_extensions(rebuild_venv(venv, site), report, site)
    for kernel in report.kernels:
        if _USERS in kernel.path and _is_asked(kernel.path, request.only):
            yield rebuild_kernel(kernel, site)


def _with_extensions(item: Item, report: Report, site: Site) -> Item:
    """The item, with the Jupyter extensions named that its packages have not brought."""
    place = site.place(item.path)
    if place is None or site.dry_run or not os.path.isdir(place):
        return item
    there = {(found.kind, found.name) for found in extensions_of(place, item.path, [])}
    for extension in report.extensions:
        if extension.path == item.path and (extension.kind, extension.name) not in there:
            item.fail(f"the Jupyter {extension.kind} extension {extension.name} is not there")
    return item


def _is_wanted(path: str, request: RecreateRequest) -> bool:
    return (request.outside or not path.startswith("/")) and _is_asked(path, request.only)


def _is_asked(path: str, only: Sequence[bytes]) -> bool:
    place = raw(path)
    return not only or any(place == asked or place.startswith(asked + b"/") for asked in only)


def rebuild_kernel(kernel: Kernel, site: Site) -> Item:
    """Register a user's kernel with Jupyter; one that has its name is left as it is."""
    item = Item("kernel", kernel.path)
    if not is_package_name(kernel.name):
        item.fail("its name is none that Jupyter takes")
        return item
    directory = os.path.join(site.home, os.fsencode(_USERS.strip("/")), os.fsencode(kernel.name))
    file = os.path.join(directory, b"kernel.json")
    if os.path.exists(file):
        item.standing = "there"
        return item
    argv = [os.fsdecode(site.moved(raw(word)) or word.encode()) for word in kernel.argv]
    spec = {"argv": argv, "display_name": kernel.display_name, "language": kernel.language}
    command = f"write {path_text(file)}"
    item.commands.append(command)
    site.told(command)
    if not site.dry_run:
        try:
            _write(file, msgspec.json.encode(spec), site)
        except CommandError as error:
            item.fail(str(error))
            return item
    item.standing = "made"
    if kernel.variables:
        item.fail(f"set again what its kernel.json had set: {', '.join(kernel.variables)}")
    if argv and argv[0].startswith("/") and not site.dry_run and not os.access(argv[0], os.X_OK):
        item.fail(f"its program {path_text(os.fsencode(argv[0]))} is not there")
    return item


def _write(file: bytes, data: bytes, site: Site) -> None:
    """A new file, whole or not there, and the directories above it, made by the owner. CommandError."""
    site.ask(["sh", "-c", _WRITE, "sh", file, data])


_WRITE: Final = 'mkdir -p -- "${1%/*}" && printf %s "$2" > "$1.smsnap" && mv -- "$1.smsnap" "$1"'
