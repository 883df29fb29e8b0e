"""Writes format-1-standing.json: manifests that stand for others, a tag, a catalog with a directory anew.

Run from the root of the checkout: `PYTHONPATH=. python tests/vectors/make_format_1_standing.py`. Secrets are
those of make_format_1.py; the objects differ from run to run.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from smsnapd.format.catalog import encode_segment
from smsnapd.format.manifest import ParentRef, StoodFor
from smsnapd.format.manifest_object import encode_manifest
from smsnapd.format.names import TagName
from smsnapd.format.tag import Tag, encode_tag
from smsnapd.model import Entry, Extent, Flag, Kind, Listing
from tests.vectors.make_format_1 import (
    MANIFEST_NAME,
    REPOSITORY_ID,
    TIME_US,
    VOLUME,
    WRITE_KEY,
    fixed,
    manifest,
)

TARGET = Path(__file__).with_name("format-1-standing.json")
STANDING = MANIFEST_NAME._replace(sequence=17, generation=4, first=6, rewrites=2)
SHORTCUT = MANIFEST_NAME._replace(sequence=64, generation=9, first=2, is_shortcut=True)
TAG = Tag(
    REPOSITORY_ID, TagName(VOLUME, TIME_US, "89abcdef01234567"), "0123456789abcdef", "before-upgrade", True
)
LISTINGS = [
    Listing(
        b"",
        [
            Entry(b"came", int(Kind.DIRECTORY), int(Flag.ANEW), 0o755, header=Extent(0, 0, 1024)),
            Entry(b"gone", int(Kind.TOMBSTONE)),
        ],
    )
]


def standing() -> dict[str, str]:
    """The two manifests, without attachments."""
    bare = replace(manifest(), chunks=(), catalog=(), parent=ParentRef("11" * 8, fixed("parent of them")))
    rows = tuple(StoodFor(number, fixed(f"manifest {number}")) for number in (6, 9, 17))
    last = (StoodFor(64, fixed("manifest 64")),)
    both = replace(bare, name=STANDING, stands_for=rows), replace(bare, name=SHORTCUT, stands_for=last)
    return {one.name.object_name(): encode_manifest(one, WRITE_KEY).hex() for one in both}


if __name__ == "__main__":
    vectors = {
        "manifests": standing(),
        "tag": {TAG.name.object_name(): encode_tag(TAG, WRITE_KEY).hex()},
        "segment": encode_segment(LISTINGS).hex(),
    }
    TARGET.write_text(json.dumps(vectors, indent=1, sort_keys=True) + "\n", "utf-8")
