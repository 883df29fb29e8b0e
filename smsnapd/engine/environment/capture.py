"""Making a report: the survey's finds, each read; and what a user keeps outside the volume."""

from __future__ import annotations

import os
import platform
import pwd
import socket
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from smsnapd.engine.environment.git import read_repository
from smsnapd.engine.environment.jupyter import extensions_of, read_kernel
from smsnapd.engine.environment.pythons import read_conda, read_venv
from smsnapd.engine.environment.reading import Deadline, TimeUpError, directories_of, read_text
from smsnapd.engine.environment.report import (
    VERSION,
    Conda,
    DataFile,
    Extension,
    GitRepository,
    Kernel,
    Report,
    Venv,
)
from smsnapd.engine.environment.survey import FOUND, Survey
from smsnapd.format.names import format_time_us
from smsnapd.model import path_text

NOTES = 1000
_CONDA_BASES = (b"anaconda3", b"miniconda3", b"miniforge3", b"mambaforge", b"micromamba", b".conda")
_SYSTEM_BASES = (b"/opt/conda",)
_SYSTEM_KERNELS = (b"/usr/local/share/jupyter", b"/usr/share/jupyter")


@dataclass
class _Capture:
    """The report while it is made. `home` is that of the volume's owner."""

    root: bytes
    home: bytes
    deadline: Deadline
    notes: list[str] = field(default_factory=list)
    venvs: list[Venv] = field(default_factory=list)
    condas: list[Conda] = field(default_factory=list)
    kernels: list[Kernel] = field(default_factory=list)
    extensions: list[Extension] = field(default_factory=list)
    repositories: list[GitRepository] = field(default_factory=list)

    def shown(self, path: bytes) -> str:
        """A path as the report has it: relative to the root if it lies below it."""
        return path_text(path.removeprefix(self.root + b"/") if path != self.root else b"")

    def environments(self, venvs: Iterable[bytes], condas: Iterable[bytes]) -> None:
        """Read them, and the kernels and extensions that they have."""
        for path in venvs:
            self.deadline.check()
            venv = read_venv(path, self.shown(path), self.home, self.notes)
            if venv is not None:
                self.venvs.append(venv)
                self.jupyter(path)
        for path in condas:
            self.deadline.check()
            self.condas.append(read_conda(path, self.shown(path), self.home, self.notes))
            self.jupyter(path)

    def jupyter(self, prefix: bytes) -> None:
        """The kernels and extensions of an environment, or of a user."""
        kernels = os.path.join(prefix, b"share/jupyter/kernels")
        self.kernel_specs(os.path.join(kernels, name) for name in directories_of(kernels))
        self.extensions += extensions_of(prefix, self.shown(prefix), self.notes)

    def kernel_specs(self, directories: Iterable[bytes]) -> None:
        """Read these kernel specs."""
        for directory in directories:
            kernel = read_kernel(directory, self.shown(directory), self.notes)
            if kernel is not None and len(self.kernels) < FOUND:
                self.kernels.append(kernel)

    def git(self, paths: Iterable[bytes]) -> None:
        """Read these repositories."""
        for path in paths:
            self.deadline.check()
            self.repositories.append(read_repository(path, self.shown(path), self.root, self.deadline))


def capture(root: bytes, left_out: Iterable[tuple[int, int]], seconds: float) -> Report:
    """The report of the volume at `root`, of whatever `seconds` sufficed for; the rest is noted.

    `left_out` are the (device, inode) of directories that are nobody's business, as the local state.
    VolumeError is not raised: a volume that is not there has an empty report.
    """
    started_us = time.time_ns() // 1000
    deadline = Deadline(seconds)
    survey = Survey(left_out, deadline)
    survey.walk(root)
    found = survey.found
    real_root = os.path.realpath(root)
    made = _Capture(real_root, home_of(root), deadline, found.notes)
    try:
        made.environments(sorted(found.venvs), sorted(found.condas))
        made.kernel_specs(sorted(found.kernels))
        made.git(sorted(found.repositories))
        made.environments((), _outside_condas(made.home, real_root))
        made.jupyter(os.path.join(made.home, b".local"))
        for prefix in _SYSTEM_KERNELS:
            kernels = os.path.join(prefix, b"kernels")
            made.kernel_specs(os.path.join(kernels, name) for name in directories_of(kernels))
    except TimeUpError:
        made.notes.append("the time was up before everything that was found had been read")
    return _report(made, started_us, found.large)


def _report(made: _Capture, started_us: int, large: list[tuple[int, bytes]]) -> Report:
    return Report(
        report=VERSION,
        captured=format_time_us(started_us),
        root=path_text(made.root),
        host=socket.gethostname(),
        system=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        venvs=tuple(made.venvs),
        condas=tuple(made.condas),
        kernels=tuple({kernel.path: kernel for kernel in made.kernels}.values()),
        extensions=tuple(made.extensions[:FOUND]),
        repositories=tuple(made.repositories),
        data=tuple(DataFile(made.shown(path), size) for size, path in sorted(large, reverse=True)),
        notes=tuple(made.notes[:NOTES]),
    )


def home_of(root: bytes) -> bytes:
    """The home directory of the owner of a directory; one that is not there if nothing tells it."""
    try:
        owner = os.stat(root).st_uid
        if owner == os.geteuid():
            return os.path.expanduser(b"~")
        return os.fsencode(pwd.getpwuid(owner).pw_dir)
    except (KeyError, OSError):
        return b"/nonexistent"


def _outside_condas(home: bytes, root: bytes) -> list[bytes]:
    """The conda environments that the owner has elsewhere: in the usual places, and those conda remembers."""
    bases = [os.path.join(home, name) for name in _CONDA_BASES] + list(_SYSTEM_BASES)
    found = set(bases)
    for base in bases:
        envs = os.path.join(base, b"envs")
        found.update(os.path.join(envs, name) for name in directories_of(envs))
    found.update(_remembered(home))
    real = {os.path.realpath(path) for path in found}
    outside = (path for path in sorted(real) if not (path + b"/").startswith(root.rstrip(b"/") + b"/"))
    return [path for path in outside if os.path.isdir(os.path.join(path, b"conda-meta"))][:FOUND]


def _remembered(home: bytes) -> Iterator[bytes]:
    try:
        text = read_text(os.path.join(home, b".conda/environments.txt"))
    except OSError:
        return
    yield from (os.fsencode(line) for line in text.splitlines()[:FOUND] if line.startswith("/"))
