"""An environment report in lines for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from smsnapd.telemetry.sizes import size_text

if TYPE_CHECKING:
    from smsnapd.engine.environment.report import Conda, DataFile, GitRepository, Report, Venv

DATA_SHOWN = 20
NAMED = 8


def report_lines(report: Report) -> Iterator[str]:
    """All that a person should see of a report; `--json` has the rest."""
    yield f"{report.root} on {report.host}, {report.captured[:19].replace('T', ' ')} UTC"
    yield from _section("virtual environments", map(_venv, report.venvs))
    yield from _section("conda environments", map(_conda, report.condas))
    kernels = (f"{kernel.path}  {kernel.display_name or kernel.name}" for kernel in report.kernels)
    yield from _section("Jupyter kernels", kernels)
    extensions = (
        f"{item.path}  {item.kind} {item.name} {item.version}{'' if item.enabled else ' (off)'}"
        for item in report.extensions
    )
    yield from _section("Jupyter extensions", extensions)
    yield from _section("git repositories", map(_repository, report.repositories))
    yield from _section("large files", map(_data, report.data[:DATA_SHOWN]))
    if len(report.data) > DATA_SHOWN:
        yield f"  and {len(report.data) - DATA_SHOWN:,} more"
    left_out = (f"{item.path}  {item.files:,} files, {size_text(item.bytes)}" for item in report.left_out)
    yield from _section("left out of the snapshot, since the above makes them again", left_out)
    yield from _section("notes", iter(report.notes))


def _section(title: str, lines: Iterator[str]) -> Iterator[str]:
    first = next(lines, None)
    if first is not None:
        yield title
        yield f"  {first.rstrip()}"
        yield from (f"  {line.rstrip()}" for line in lines)


def _venv(venv: Venv) -> str:
    local = [package.name for package in venv.packages if package.source]
    from_elsewhere = f", not from an index: {_names(local)}" if local else ""
    return f"{venv.path}  Python {venv.python}, {len(venv.packages):,} packages{from_elsewhere}"


def _conda(conda: Conda) -> str:
    asked = f", asked for: {_names(list(conda.requested))}" if conda.requested else ""
    by_pip = f", {len(conda.pip):,} by pip" if conda.pip else ""
    return f"{conda.path}  {len(conda.packages):,} packages{by_pip}{asked}"


def _names(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _repository(repository: GitRepository) -> str:
    where = f" of {repository.remotes[0].url}" if repository.remotes else ""
    at = f"{repository.branch or 'no branch'} {repository.commit[:10] or 'no commit'}{where}"
    unsaved = repository.unsaved()
    return f"{repository.path}  {at}" + (f"; ONLY HERE: {'; '.join(unsaved)}" if unsaved else "")


def _data(file: DataFile) -> str:
    copy = f"; also {file.copy} ({file.certainty})" if file.copy else ""
    return f"{file.path}  {size_text(file.size)}{copy}"
