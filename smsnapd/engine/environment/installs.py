"""What pip puts into an environment, made the same again: pinned, without anything that was not there."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Sequence
from urllib.parse import unquote_to_bytes

from smsnapd.engine.environment.packages import packages_of
from smsnapd.engine.environment.pythons import pip_indexes
from smsnapd.engine.environment.rebuilding import CommandError, Item, Site
from smsnapd.engine.environment.report import Package
from smsnapd.engine.environment.words import canonical_name, is_package_name, is_version, is_web_address, raw

_VCS = re.compile(r"(git|hg|svn|bzr)\+(https|http|ssh|git)://")
_QUIET = ("--quiet", "--disable-pip-version-check", "--no-input")


class Installer:
    """pip, on the environment at `prefix`. `indexes` are used if this machine is not configured with any.

    With `anyway` it also installs what the environment sees elsewhere, as one of a system's packages does.
    """

    def __init__(
        self, prefix: bytes, indexes: Sequence[str], item: Item, site: Site, *, anyway: bool = False
    ) -> None:
        self._prefix = prefix
        self._python = os.path.join(prefix, b"bin/python")
        self._item = item
        self._site = site
        own = os.environ.get("PIP_INDEX_URL") or pip_indexes(prefix, site.home)
        usable = [url for url in indexes if is_web_address(url)]
        self._options = ["--no-deps", *(["--ignore-installed"] if anyway else [])]
        if usable and not own:
            extra = [word for url in usable[1:] for word in ("--extra-index-url", url)]
            self._options += ["--index-url", usable[0], *extra]

    def install(self, packages: Iterable[Package]) -> bool:
        """Install what is missing or of another version; whether there was anything to do."""
        there = self._there()
        wanted = [package for package in packages if not self._is_there(package, there)]
        pinned = [f"{package.name}=={package.version}" for package in wanted if not package.source]
        self._pinned([text for text in pinned if _is_pin(text)])
        for package in wanted:
            if package.source:
                self._from_source(package)
        return bool(wanted)

    @property
    def names(self) -> frozenset[str]:
        """What is there now, by canonical names."""
        return frozenset(self._there())

    def remove_others(self, packages: Iterable[Package], kept: Collection[str]) -> None:
        """Remove what making an environment has brought: neither of `packages` nor `kept`."""
        wanted = {canonical_name(package.name) for package in packages}
        others = sorted(self.names - wanted - set(kept))
        if others and not self._site.dry_run:
            self._pip("uninstall", ["--yes", "--", *others])

    def compare(self, packages: Iterable[Package]) -> None:
        """Name in the item what is not as it was."""
        if self._site.dry_run:
            return
        there = self._there()
        for package in packages:
            found = there.get(canonical_name(package.name))
            if found is None:
                self._item.fail(f"{package.name} {package.version} is not there")
            elif found.version != package.version and not package.editable:
                self._item.fail(f"{package.name} is {found.version} and not {package.version}")

    def _there(self) -> dict[str, Package]:
        return {canonical_name(package.name): package for package in packages_of(self._prefix, [])}

    def _is_there(self, package: Package, there: dict[str, Package]) -> bool:
        """Whether it is: of this version, or from this place, which may have moved with the volume."""
        found = there.get(canonical_name(package.name))
        if found is None or found.editable != package.editable:
            return False
        source = package.source
        if source.startswith("file:///"):
            source = "file://" + os.fsdecode(self._site.moved(raw(source.removeprefix("file://"))))
        return found.source in (source, package.source) and (
            found.version == package.version or found.editable
        )

    def _pinned(self, requirements: Sequence[str]) -> None:
        """All at once; where that fails, halves, until it is known which ones an index has not."""
        if not requirements:
            return
        try:
            self._pip("install", [*self._options, "--", *requirements])
        except CommandError as error:
            if len(requirements) == 1:
                self._item.fail(f"{requirements[0]} was not installed: {error}")
                return
            middle = len(requirements) // 2
            self._pinned(requirements[:middle])
            self._pinned(requirements[middle:])

    def _from_source(self, package: Package) -> None:
        what = f"{package.name} {package.version}"
        try:
            requirement = self._source(package)
        except ValueError as error:
            self._item.fail(f"{what} was not installed: {error}")
            return
        editable = ["--editable"] if package.editable else ["--"]
        try:
            self._pip("install", [*self._options, *editable, requirement])
        except CommandError as error:
            self._item.fail(f"{what} was not installed from {package.source}: {error}")

    def _source(self, package: Package) -> str | bytes:
        """The requirement; ValueError if it is from somewhere that is not here.

        Nothing is taken from an index in its place: something else may have that name there.
        """
        url = package.source
        if url.startswith("file:///"):
            path = self._site.moved(unquote_to_bytes(url.removeprefix("file://").partition("#")[0]))
            if not os.path.exists(path) and not self._site.dry_run:
                raise ValueError(f"it was installed from {os.fsdecode(path)}, which is not there")
            return path
        if (
            package.editable
            or not (is_web_address(url) or _VCS.match(url))
            or not is_package_name(package.name)
        ):
            raise ValueError(f"it was installed from {url}, which nobody can tell how to get")
        return f"{package.name} @ {url}"

    def _pip(self, verb: str, arguments: Sequence[str | bytes]) -> None:
        self._site.run(
            self._item, [self._python, "-m", "pip", verb, *_QUIET, *arguments], self._prefix_if_there()
        )

    def _prefix_if_there(self) -> bytes | None:
        return self._prefix if os.path.isdir(self._prefix) else None


def _is_pin(text: str) -> bool:
    name, _, version = text.partition("==")
    return is_package_name(name) and is_version(version)
