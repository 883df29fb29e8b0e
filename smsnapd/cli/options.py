"""Options that every verb takes, before the verb or behind it, and one set of words for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click

_PREFIX = "shared_"
_F = TypeVar("_F", bound=Callable[..., Any])


@dataclass
class Options:
    """What the command line said so far; the one mutable thing, filled while click parses."""

    config: str | None = None
    repository: str | None = None
    path: str | None = None
    volume: str | None = None
    passphrase_file: str | None = None
    json: bool = False
    quiet: bool = False
    verbose: int = 0
    repository_at: str | None = None
    identity_file: str | None = None

    @property
    def verbosity(self) -> int:
        """-1 quiet, 0 normal, 1 and more verbose."""
        return -1 if self.quiet else self.verbose


def _keep(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    """Note what was given; what was not leaves the value from before the verb alone."""
    if value:
        setattr(context.ensure_object(Options), str(parameter.name).removeprefix(_PREFIX), value)


def _option(*names: str, **settings: Any) -> Callable[[_F], _F]:
    # A name of its own, because verbs have arguments called path and volume.
    field = _PREFIX + names[-1].removeprefix("--").replace("-", "_")
    return click.option(*names, field, expose_value=False, callback=_keep, **settings)


_SHARED = (
    _option("-c", "--config", metavar="FILE", help="Configuration file."),
    _option("--repository", metavar="URL", help="Repository: s3://bucket/prefix or file:///directory."),
    _option("--path", metavar="DIR", help="Root directory of the volume."),
    _option("--volume", metavar="NAME", help="Name of the volume in the repository."),
    _option("--passphrase-file", metavar="FILE", help="Read the passphrase from the first line of FILE."),
    _option("--identity-file", metavar="FILE", help="Open with the recovery key in FILE, or `-`."),
    _option("--json", is_flag=True, help="Report one JSON document."),
    _option("-q", "--quiet", is_flag=True, help="Say nothing but errors and what was asked for."),
    _option("-v", "--verbose", count=True, help="Say more; twice for details. Errors come with a traceback."),
)


repository_at = _option(
    "--repository-at",
    metavar="TIME",
    help="Read a versioned S3 bucket as it was at TIME, deleted objects too.",
)
"""For verbs that only read the repository."""


def shared_options(command: _F) -> _F:
    """Give a command, or the group of them, the options of every verb."""
    for option in reversed(_SHARED):
        command = option(command)
    return command


class Unforeseen(Exception):  # noqa: N818
    """Carries, as its cause, an exception through click that click would misunderstand."""


class Verb(click.Command):
    """A command whose help ends with its text as it was written: examples and the JSON it reports."""

    def __init__(self, *args: Any, examples: str = "", report: str = "", **settings: Any) -> None:
        pieces = []
        if examples:
            pieces.append("Examples:\n" + _indented(examples))
        if report:
            pieces.append("With --json:\n" + _indented(report))
        # \b keeps click from re-wrapping a paragraph.
        settings.setdefault("epilog", "\n\n".join("\b\n" + piece for piece in pieces))
        super().__init__(*args, **settings)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb; keep from click what it would take for a closed terminal, and hush up."""
        try:
            return super().invoke(ctx)
        except (BrokenPipeError, EOFError) as error:
            raise Unforeseen from error


def _indented(text: str) -> str:
    return "\n".join("  " + line for line in text.strip().splitlines())


def verb(name: str, *, examples: str, report: str = "") -> Callable[[Callable[..., int]], click.Command]:
    """Make a function a verb with the shared options; it returns the exit status."""

    def decorate(function: Callable[..., int]) -> click.Command:
        command = click.command(name, cls=Verb, examples=examples, report=report)(shared_options(function))
        command.params.sort(key=lambda parameter: parameter.callback is _keep)  # its own options first
        return command

    return decorate
