"""The Python of a version, and conda, on this machine: where they usually are, and whether they run."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterator

from smsnapd.engine.environment.rebuilding import CommandError, Site

PROBE_S = 60.0
_PROBE = "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"
_PLACES = (
    "{home}/.pyenv/versions/{minor}.*/bin/python{minor}",
    "{home}/.local/share/uv/python/cpython-{minor}.*/bin/python{minor}",
    "/opt/pyenv/versions/{minor}.*/bin/python{minor}",
    "/usr/bin/python{minor}",
    "/usr/local/bin/python{minor}",
    "{home}/anaconda3/envs/*/bin/python{minor}",
    "{home}/anaconda3/bin/python{minor}",
    "{home}/miniconda3/bin/python{minor}",
    "/opt/conda/bin/python{minor}",
)
_CONDA_PLACES = ("anaconda3", "miniconda3", "miniforge3", "mambaforge")


def find_python(minor: str, site: Site) -> str:
    """A Python of this version (`3.11`) that runs and can make environments; "" if there is none."""
    for candidate in dict.fromkeys(_candidates(minor, site)):
        try:
            if site.ask([candidate, "-I", "-c", _PROBE], seconds=PROBE_S).strip() == minor:
                return candidate
        except CommandError:
            continue  # a name in the path that does not run, as version managers leave them
    return ""


def _candidates(minor: str, site: Site) -> Iterator[str]:
    found = site.tool(f"python{minor}")
    if found:
        yield found
    if minor == f"{sys.version_info.major}.{sys.version_info.minor}":
        yield getattr(sys, "_base_executable", sys.executable)
    home = glob.escape(os.fsdecode(site.home))
    for pattern in _PLACES:
        yield from sorted(glob.glob(pattern.format(home=home, minor=minor)), reverse=True)


def find_conda(site: Site) -> str:
    """A program that makes conda environments; "" if there is none."""
    found = site.tool("conda", "mamba", "micromamba")
    if found:
        return found
    home = os.fsdecode(site.home)
    places = [f"{home}/{name}/bin/conda" for name in _CONDA_PLACES] + ["/opt/conda/bin/conda"]
    return next((place for place in places if os.access(place, os.X_OK)), "")
