"""Large files of the volume that also lie on S3: found by name and size, told from others by ETag.

An ETag is the MD5 of an object that was put whole, and of one in parts the MD5 of their MD5s, with their
count (S3 API reference, "Object"); with KMS it is neither. So one that agrees is a proof; one that does not
is none of the contrary: then it is said that only name and size agree.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Final

import msgspec

from smsnapd.engine.environment.reading import Deadline, TimeUpError
from smsnapd.engine.environment.report import DataFile, Report
from smsnapd.engine.environment.words import raw
from smsnapd.errors import StoreError, UsageError, VolumeError
from smsnapd.store.base import StoreSettings
from smsnapd.volume.tree import Tree

SEARCH_S: Final = 60.0
"""For so long files are looked for and read, all together."""
OBJECTS: Final = 1_000_000
SAME_CONTENTS: Final = "its ETag is that of these contents"
SAME_SIZE: Final = "the same name and size; whether it has the same contents is not known"

_MIB: Final = 1024 * 1024
_PARTS: Final = tuple(size * _MIB for size in (8, 16, 5, 10, 15, 25, 32, 50, 64, 100, 128, 256, 512))
"""What tools cut uploads into; the AWS tools' 8 MiB first."""
_ETAG: Final = re.compile(r'"?([0-9a-f]{32})(?:-([0-9]{1,5}))?"?')


def with_copies(
    report: Report, root: bytes, places: Sequence[StoreSettings], beat: Callable[[], None]
) -> Report:
    """The report with what its large files have below these S3 URLs. What cannot be asked is noted."""
    deadline, notes = Deadline(SEARCH_S), list(report.notes)
    found: dict[str, DataFile] = {}
    for place in places:
        try:
            for file in _below(
                place, [file for file in report.data if file.path not in found], beat, deadline
            ):
                found[file.path] = _judged(file, root, beat, deadline)
        except TimeUpError:
            notes.append(f"{place.url}: there was no time to look for all large files")
        except (StoreError, UsageError, VolumeError) as error:
            notes.append(f"{place.url} could not be looked at for large files: {error.why}")
    data = tuple(found.get(file.path, file) for file in report.data)
    return msgspec.structs.replace(report, data=data, notes=tuple(notes))


def _below(
    place: StoreSettings, files: Sequence[DataFile], beat: Callable[[], None], deadline: Deadline
) -> Iterator[DataFile]:
    """Files with an object of their name and size; of several the one whose key ends most alike.

    Its ETag stands for the certainty, until that is judged.
    """
    from smsnapd.store.s3 import open_s3  # imports boto3: 0.7 s, 60 MB

    by_size: dict[tuple[int, str], list[DataFile]] = defaultdict(list)
    for file in files:
        by_size[file.size, os.path.basename(file.path)].append(file)
    best: dict[str, tuple[int, DataFile]] = {}
    bucket, _, prefix = place.url.removeprefix("s3://").partition("/")
    with closing(open_s3(replace(place, url=f"s3://{bucket}"))) as store:
        for number, item in enumerate(store.objects().below(prefix)):
            if number % 1000 == 0:
                beat()
                deadline.check()
            for file in by_size.get((item.size, item.key.rpartition("/")[2]), ()):
                alike = _alike(file.path, item.key)
                if alike > best.get(file.path, (0, file))[0]:
                    copy = f"s3://{bucket}/{item.key}"
                    best[file.path] = alike, msgspec.structs.replace(file, copy=copy, certainty=item.etag)
            if number >= OBJECTS:
                break
    yield from (file for _, file in best.values())


def _alike(path: str, key: str) -> int:
    """How many names at the end of both are the same."""
    pairs = zip(reversed(path.split("/")), reversed(key.split("/")), strict=False)
    return next((number for number, (one, other) in enumerate(pairs) if one != other), len(path.split("/")))


def _judged(file: DataFile, root: bytes, beat: Callable[[], None], deadline: Deadline) -> DataFile:
    """The file with what its ETag says; it is read for that if there is time."""
    certainty = SAME_SIZE
    try:
        with Tree(root) as tree:
            if has_etag(tree, raw(file.path), file, beat, deadline):
                certainty = SAME_CONTENTS
    except (OSError, TimeUpError):
        pass  # nothing more is known of it then, which is what is said
    return msgspec.structs.replace(file, certainty=certainty)


def has_etag(tree: Tree, path: bytes, file: DataFile, beat: Callable[[], None], deadline: Deadline) -> bool:
    """Whether the contents of a file make the ETag that stands in its certainty. OSError, TimeUpError."""
    match = _ETAG.fullmatch(file.certainty)
    if match is None:
        return False
    parts = int(match[2] or 0)
    sizes = [size for size in _PARTS if -(-file.size // size) == parts] if parts else [file.size]
    if b".." in path.split(b"/"):
        return False
    for part_bytes in sizes:
        with open(tree.open_file(path), "rb") as opened:
            digests = list(_digests(opened.read, part_bytes, beat, deadline))
        digest = hashlib.md5(b"".join(digests), usedforsecurity=False).digest() if parts else digests[0]
        if digest.hex() == match[1]:
            return True
    return False


def _digests(
    read: Callable[[int], bytes], part_bytes: int, beat: Callable[[], None], deadline: Deadline
) -> Iterator[bytes]:
    """The MD5 of each part."""
    digest, left = hashlib.md5(usedforsecurity=False), part_bytes
    while piece := read(min(left, _MIB)):
        deadline.check()
        beat()
        digest.update(piece)
        left -= len(piece)
        if not left:
            yield digest.digest()
            digest, left = hashlib.md5(usedforsecurity=False), part_bytes
    if left < part_bytes:
        yield digest.digest()
