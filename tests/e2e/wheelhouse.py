"""A wheelhouse for tests: smsnapd's wheel built from the checkout, all else from what is installed."""

import re
import subprocess
import sys
import zipfile
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement

CHECKOUT = Path(__file__).parents[2]


def make_wheelhouse(directory: Path) -> Path:
    """Fill `directory`; only the build's own tools come from elsewhere, as pip is set up."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", directory, CHECKOUT], check=True)
    built = next(directory.glob("smsnapd-*.whl"))
    with zipfile.ZipFile(built) as wheel:
        metadata = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        required = re.findall(r"(?m)^Requires-Dist: (.+)$", wheel.read(metadata).decode())
    for name in with_dependencies(required):
        repack(distribution(name), directory)
    return directory


def with_dependencies(required: list[str]) -> set[str]:
    """The names of the distributions that these requirements come to here."""
    found: set[str] = set()
    pending = [Requirement(text) for text in required]
    while pending:
        requirement = pending.pop()
        if (
            requirement.marker and not requirement.marker.evaluate({"extra": ""})
        ) or requirement.name in found:
            continue
        found.add(requirement.name)
        pending += [Requirement(text) for text in distribution(requirement.name).requires or []]
    return found


def repack(installed: Distribution, directory: Path) -> None:
    """The wheel that a distribution was installed from, as near as a later installation needs it."""
    tags = [tag.split("-") for tag in re.findall(r"(?m)^Tag: (\S+)$", installed.read_text("WHEEL") or "")]
    tag = "-".join(".".join(dict.fromkeys(parts)) for parts in zip(*tags, strict=True))
    name = re.sub(r"[-_.]+", "_", installed.metadata["Name"]).lower()
    with zipfile.ZipFile(directory / f"{name}-{installed.version}-{tag}.whl", "w") as wheel:
        for file in installed.files or ():
            if file.parts[0] != ".." and file.suffix != ".pyc":
                wheel.write(str(file.locate()), str(file))
