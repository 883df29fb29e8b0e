"""What `conda create` does, by the library that pixi and conda itself solve and install with (py-rattler).

No index that tests may ask has a conda, mamba or micromamba; this knows just the options that are used:
`create --yes --quiet --prefix DIR (--file EXPLICIT | [--channel URL]... SPEC...)`.
"""

import argparse
import asyncio
import hashlib
import io
import json
import os
import shutil
import sys
import tarfile
from pathlib import Path
from urllib.parse import unquote, urlsplit

import rattler


def make_package(channel: Path, name: str, version: str, *depends: str) -> None:
    """A real package with one file."""
    (channel / "noarch").mkdir(parents=True, exist_ok=True)
    text = f"{name} {version}\n"
    paths = [
        {
            "_path": f"share/{name}.txt",
            "path_type": "hardlink",
            "sha256": _sha256(text),
            "size_in_bytes": len(text),
        }
    ]
    index = {"name": name, "version": version, "build": "0", "build_number": 0, "depends": list(depends)}
    members = {
        "info/index.json": json.dumps(index | {"subdir": "noarch", "noarch": "generic"}),
        "info/paths.json": json.dumps({"paths": paths, "paths_version": 1}),
        f"share/{name}.txt": text,
    }
    with tarfile.open(channel / "noarch" / f"{name}-{version}-0.tar.bz2", "w:bz2") as archive:
        for path, content in members.items():
            member = tarfile.TarInfo(path)
            member.size = len(content.encode())
            archive.addfile(member, io.BytesIO(content.encode()))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def index(channel: Path) -> None:
    """Make a channel of a directory of packages."""
    for old in channel.glob("noarch/repodata*"):
        old.unlink()
    shutil.rmtree(channel / "noarch/shards", ignore_errors=True)
    asyncio.run(rattler.index.index_fs(str(channel)))


def create(prefix: Path, channels: list[str], specs: list[str], requested: list[str]) -> None:
    """Solve and install, and write the history as conda does."""

    async def install() -> None:
        sources = [rattler.Channel(url) for url in channels]
        records = await rattler.solve(sources=sources, specs=specs, platforms=["noarch"])
        await rattler.install(records, target_prefix=str(prefix), cache_dir=f"{prefix}.cache")

    asyncio.run(install())
    shutil.rmtree(f"{prefix}.cache", ignore_errors=True)
    with (prefix / "conda-meta/history").open("a") as history:
        history.write(f"==> 2026-11-26 21:00:00 <==\n# update specs: {requested!r}\n")


def installed(prefix: Path) -> dict[str, str]:
    """Names and versions, as the library reads them."""
    records = [rattler.PrefixRecord.from_path(path) for path in (prefix / "conda-meta").glob("*.json")]
    return {record.name.normalized: f"{record.version} {record.build}" for record in records}


def explicit(file: str) -> tuple[list[str], list[str]]:
    """Channels and exact specs of a file; each package must be there and have its MD5."""
    channels, specs = [], []
    lines = Path(file).read_text().splitlines()
    assert lines[0] == "@EXPLICIT"
    for line in lines[1:]:
        url, _, md5 = line.partition("#")
        package = Path(unquote(urlsplit(url).path))
        if not package.exists() or hashlib.md5(package.read_bytes()).hexdigest() != md5:
            sys.exit(f"CondaHTTPError: 404 for {url}")
        name, version, build = package.name.removesuffix(".tar.bz2").rsplit("-", 2)
        channels.append(url.rsplit("/", 2)[0])
        specs.append(f"{name} =={version} {build}")
    return list(dict.fromkeys(channels)), specs


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("verb", choices=["create"])
    for flag in ("--yes", "--quiet"):
        parser.add_argument(flag, action="store_true")
    parser.add_argument("--prefix", type=Path)
    parser.add_argument("--file")
    parser.add_argument("--channel", action="append", default=[])
    parser.add_argument("specs", nargs="*")
    given = parser.parse_intermixed_args()
    channels, specs = explicit(given.file) if given.file else (given.channel, given.specs)
    create(given.prefix, channels, specs, given.specs)


def put_in_path(directory: Path) -> str:
    """A `conda` in a directory; that directory before the others, as PATH has them."""
    directory.mkdir()
    program = directory / "conda"
    program.write_text(f"#!/bin/sh\nexec '{sys.executable}' '{__file__}' \"$@\"\n")
    program.chmod(0o755)
    return f"{directory}:{os.environ['PATH']}"


if __name__ == "__main__":
    main()
