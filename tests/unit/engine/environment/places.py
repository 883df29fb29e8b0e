"""Things to be found on a volume: git repositories, and environments as pip and conda write them."""

import os
import subprocess
from pathlib import Path

PLAIN = {
    "PATH": os.environ["PATH"],
    "HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "A",
    "GIT_AUTHOR_EMAIL": "a@example.org",
    "GIT_COMMITTER_NAME": "A",
    "GIT_COMMITTER_EMAIL": "a@example.org",
}


def git(place: Path, *arguments: str) -> str:
    """Run git there, as a user does."""
    command = ["git", "-c", "init.defaultBranch=main", "-c", "protocol.file.allow=always", *arguments]
    done = subprocess.run(command, cwd=place, env=PLAIN, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def commit(place: Path, name: str, text: str, message: str) -> str:
    """Write a file and commit it; the commit."""
    (place / name).write_text(text)
    git(place, "add", name)
    git(place, "commit", "-qm", message)
    return git(place, "rev-parse", "HEAD")


def pushed_repository(place: Path, remote: Path) -> str:
    """A repository at `place` whose one commit is at a bare `remote` too; the commit."""
    place.mkdir(parents=True)
    git(place, "init", "-q")
    made = commit(place, "a.txt", "a\n", "first")
    remote.parent.mkdir(parents=True, exist_ok=True)
    git(place, "clone", "-q", "--bare", str(place), str(remote))
    git(place, "remote", "add", "origin", str(remote))
    git(place, "push", "-q", "-u", "origin", "main")
    return made


def distribution(site: Path, name: str, version: str, **files: str) -> Path:
    """The metadata of a distribution, as pip leaves it."""
    directory = site / f"{name}-{version}.dist-info"
    directory.mkdir(parents=True)
    (directory / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n\nText")
    for file, text in {"INSTALLER": "pip\n", **files}.items():
        (directory / file.replace("__", ".")).write_text(text)
    return directory


def bare_venv(place: Path, python: str = "3.11.7") -> Path:
    """The files that make a directory a virtual environment; its site-packages."""
    site = place / "lib" / f"python{python.rpartition('.')[0]}" / "site-packages"
    site.mkdir(parents=True)
    (place / "pyvenv.cfg").write_text(
        f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {python}\n"
    )
    return site
