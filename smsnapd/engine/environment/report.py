"""The report: what is needed to make a volume's environments again (FORMAT.md, section 14).

Paths are text as `path_text` makes it, relative to the volume's root or absolute. Nothing in it is a secret,
and nothing in it has been checked: whoever acts on it asks `words` first.
"""

from __future__ import annotations

from typing import Final

import msgspec

from smsnapd.errors import DamageError

VERSION: Final = 1
REPORT_BYTES: Final = 16 * 1024 * 1024
"""A report is no larger: half of what a chunk may hold."""


class Package(msgspec.Struct, frozen=True, omit_defaults=True):
    """A Python distribution. `source` is its PEP 610 origin as a requirement has it; "" is an index."""

    name: str
    version: str
    source: str = ""
    editable: bool = False
    installer: str = ""


class Venv(msgspec.Struct, frozen=True, omit_defaults=True):
    """A virtual environment. `indexes` are those that pip was configured with there, the main one first."""

    path: str
    python: str
    packages: tuple[Package, ...] = ()
    system_site_packages: bool = False
    prompt: str = ""
    indexes: tuple[str, ...] = ()


class CondaPackage(msgspec.Struct, frozen=True, omit_defaults=True):
    """A conda package; `url` is where it came from, "" if nothing says it."""

    name: str
    version: str
    build: str = ""
    url: str = ""
    md5: str = ""


class Conda(msgspec.Struct, frozen=True, omit_defaults=True):
    """A conda environment. `requested` are the specs of its history, `pip` what pip has put into it."""

    path: str
    packages: tuple[CondaPackage, ...] = ()
    requested: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()
    pip: tuple[Package, ...] = ()
    indexes: tuple[str, ...] = ()


class Kernel(msgspec.Struct, frozen=True, omit_defaults=True):
    """A Jupyter kernel spec. Of its environment only the variables' names are told."""

    path: str
    name: str
    display_name: str = ""
    language: str = ""
    argv: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()


class Extension(msgspec.Struct, frozen=True, omit_defaults=True):
    """A Jupyter extension; `kind` is lab, notebook or server."""

    path: str
    name: str
    kind: str
    version: str = ""
    enabled: bool = True


class Remote(msgspec.Struct, frozen=True, omit_defaults=True):
    """A remote of a git repository, without credentials."""

    name: str
    url: str


class Branch(msgspec.Struct, frozen=True, omit_defaults=True):
    """A local branch; `unpushed` counts its commits that no remote is known to have."""

    name: str
    commit: str
    upstream: str = ""
    unpushed: int = 0
    subjects: tuple[str, ...] = ()


class Uncommitted(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is in a work tree and in no commit; `paths` names the first of them, relative to it."""

    changed: int = 0
    untracked: int = 0
    paths: tuple[str, ...] = ()


class GitRepository(msgspec.Struct, frozen=True, omit_defaults=True):
    """A git repository. `unpushed` counts HEAD's commits that no remote is known to have.

    `problem` says why less is known of it; then nothing is known to be pushed.
    """

    path: str
    remotes: tuple[Remote, ...] = ()
    branch: str = ""
    commit: str = ""
    unpushed: int = 0
    branches: tuple[Branch, ...] = ()
    stashes: int = 0
    uncommitted: Uncommitted = Uncommitted()
    bare: bool = False
    problem: str = ""

    def unsaved(self) -> tuple[str, ...]:
        """What of it lies nowhere else, in words; nothing if a clone of its remote has it all."""
        return tuple(_unsaved(self))


class DataFile(msgspec.Struct, frozen=True, omit_defaults=True):
    """A large file. `copy` is where it lies on S3 too, `certainty` how that is known; "" if it is not."""

    path: str
    size: int
    copy: str = ""
    certainty: str = ""


class LeftOut(msgspec.Struct, frozen=True, omit_defaults=True):
    """An environment that the snapshot does not hold, because this report rebuilds it."""

    path: str
    files: int
    bytes: int


class Report(msgspec.Struct, frozen=True, omit_defaults=True):
    """All of it. `captured` is a time (UTC), `root` where the volume was."""

    report: int
    captured: str
    root: str
    host: str = ""
    system: str = ""
    venvs: tuple[Venv, ...] = ()
    condas: tuple[Conda, ...] = ()
    kernels: tuple[Kernel, ...] = ()
    extensions: tuple[Extension, ...] = ()
    repositories: tuple[GitRepository, ...] = ()
    data: tuple[DataFile, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to make again, and nothing to say."""
        found = (self.venvs, self.condas, self.kernels, self.extensions, self.repositories, self.data)
        return not any(found)


def _unsaved(repository: GitRepository) -> list[str]:
    said = []
    if repository.problem:
        said.append(f"not known: {repository.problem}")
    if not repository.remotes:
        said.append("it has no remote")
    branches = {branch.name: branch.unpushed for branch in repository.branches if branch.unpushed}
    if repository.unpushed and repository.branch not in branches:
        branches[repository.branch or "a detached HEAD"] = repository.unpushed
    said += [f"{count:,} unpushed commits on {name}" for name, count in branches.items()]
    if repository.stashes:
        said.append(f"{repository.stashes:,} stashes")
    if repository.uncommitted.changed:
        said.append(f"{repository.uncommitted.changed:,} uncommitted changes")
    if repository.uncommitted.untracked:
        said.append(f"{repository.uncommitted.untracked:,} untracked files")
    return said


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Report)


def encode_report(report: Report) -> bytes:
    """The report as JSON, shortened of whatever has the most rows until it is within `REPORT_BYTES`."""
    data = _encoder.encode(report)
    while len(data) > REPORT_BYTES:
        report = _halved(report)
        data = _encoder.encode(report)
    return data


def _halved(report: Report) -> Report:
    """Half of the longest list, and a note of it."""
    lists = {name: getattr(report, name) for name in ("data", "repositories", "extensions", "kernels")}
    lists |= {"venvs": report.venvs, "condas": report.condas, "notes": report.notes}
    name = max(lists, key=lambda key: len(_encoder.encode(lists[key])))
    kept = lists[name][: len(lists[name]) // 2]
    report = msgspec.structs.replace(report, **{name: kept})
    return msgspec.structs.replace(
        report, notes=(*report.notes, f"of {len(lists[name]):,} {name} only {len(kept):,} are told of")
    )


def decode_report(data: bytes, what: str) -> Report:
    """The report that `data` is; DamageError if it is none, or one of a later version."""
    try:
        if len(data) > REPORT_BYTES:
            raise DamageError(what, f"it has {len(data):,} bytes, more than any report")
        report = _decoder.decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise DamageError(what, f"it is no environment report: {error}") from error
    if report.report != VERSION:
        raise DamageError(what, f"it is of version {report.report}", "use a later smsnapd")
    return report
