"""Jupyter's kernels and extensions, from the directories and files that Jupyter itself looks at."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import msgspec

from smsnapd.engine.environment.reading import directories_of, entries_of, read_text
from smsnapd.engine.environment.report import Extension, Kernel
from smsnapd.model import path_text


def read_kernel(directory: bytes, shown: str, notes: list[str]) -> Kernel | None:
    """The kernel spec in `directory`, told of as `shown`; None if there is none that is one.

    The values of its variables are left out: people keep tokens there.
    """
    spec = _json(os.path.join(directory, b"kernel.json"), notes)
    argv = spec.get("argv")
    if not isinstance(argv, list) or not argv:
        return None
    variables = spec.get("env")
    return Kernel(
        path=shown,
        name=path_text(os.path.basename(directory)),
        display_name=_word(spec.get("display_name")),
        language=_word(spec.get("language")),
        argv=tuple(_word(item) for item in argv[:100]),
        variables=tuple(sorted(map(_word, variables)))[:100] if isinstance(variables, dict) else (),
    )


def extensions_of(prefix: bytes, shown: str, notes: list[str]) -> Iterator[Extension]:
    """The extensions of an environment, or of a user's ~/.local: lab, notebook and server ones."""
    labs = os.path.join(prefix, b"share/jupyter/labextensions")
    for name in directories_of(labs):
        below = directories_of(os.path.join(labs, name)) if name.startswith(b"@") else []
        for path in [os.path.join(name, inner) for inner in below] or [name]:
            package = _json(os.path.join(labs, path, b"package.json"), notes, needed=False)
            if package:
                yield Extension(shown, path_text(path), "lab", _word(package.get("version")))
    yield from _configured(os.path.join(prefix, b"etc/jupyter"), shown, notes)


def _configured(directory: bytes, shown: str, notes: list[str]) -> Iterator[Extension]:
    """What the configuration below `directory` switches on or off."""
    for name in (b"jupyter_server_config.d", b"jupyter_notebook_config.d"):
        for settings in _settings_in(os.path.join(directory, name), notes):
            for extension, on in _server_extensions(settings):
                yield Extension(shown, _word(extension), "server", enabled=on)
    for section in directories_of(os.path.join(directory, b"nbconfig")):
        for settings in _settings_in(os.path.join(directory, b"nbconfig", section), notes):
            loaded = settings.get("load_extensions")
            for extension, on in loaded.items() if isinstance(loaded, dict) else ():
                yield Extension(shown, _word(extension), "notebook", enabled=on is True)


def _settings_in(directory: bytes, notes: list[str]) -> Iterator[dict[str, Any]]:
    for entry in entries_of(directory):
        if entry.name.endswith(b".json"):
            yield _json(entry.path, notes)


def _server_extensions(settings: dict[str, Any]) -> Iterator[tuple[object, bool]]:
    for app, key in (("ServerApp", "jpserver_extensions"), ("NotebookApp", "nbserver_extensions")):
        section = settings.get(app)
        found = section.get(key) if isinstance(section, dict) else None
        yield from ((name, on is True) for name, on in found.items()) if isinstance(found, dict) else ()


def _json(path: bytes, notes: list[str], *, needed: bool = True) -> dict[str, Any]:
    """A JSON object in a file; {} if there is none, which is noted if it is `needed`."""
    try:
        value = msgspec.json.decode(read_text(path))
    except (OSError, msgspec.DecodeError, RecursionError) as error:
        if needed:
            notes.append(f"{path_text(path)} was not understood: {error}")
        return {}
    return value if isinstance(value, dict) else {}


def _word(value: object) -> str:
    """A text as it may be told; "" of what is none."""
    return path_text(value.encode("utf-8", "replace")[:1000]) if isinstance(value, str) and value else ""
