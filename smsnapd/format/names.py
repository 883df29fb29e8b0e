"""Object names: built and parsed (FORMAT.md, section 2), and times as text (section 1).

Names are relative to the repository's URL. The `parse_…` functions give None for a name of another
form, for such objects a reader ignores; the functions that build a name expect valid parts.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final, Literal, NamedTuple

from smsnapd.errors import UsageError

REPOSITORY: Final = "repository"
KEYSLOTS_PREFIX: Final = "keys/slots/"
ROSTERS_PREFIX: Final = "keys/roster/"
WRITERS_PREFIX: Final = "keys/writers/"
VOLUMES_PREFIX: Final = "volumes/"

NUMBER_MAX: Final = 9_999_999_999
"""The highest sequence or generation: ten digits."""

TIME_MAX_US: Final = 253_402_300_799_999_999
"""9999-12-31T23:59:59.999999Z; times begin at the epoch."""

SnapshotKind = Literal["full", "incremental"]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)

_VOLUME = r"([A-Za-z0-9][A-Za-z0-9._-]{0,62})"
_NUMBER = r"([0-9]{10})"
_HOUR = r"(?:[01][0-9]|2[0-3])"  # Python from 3.14 on would read 24 as the next midnight
_NAME_TIME = rf"([0-9]{{8}}T{_HOUR}[0-9]{{4}})([0-9]{{6}})Z"
_TEXT_TIME = rf"[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}T{_HOUR}:[0-9]{{2}}:[0-9]{{2}}\.[0-9]{{6}}Z"


def _hex(size: int) -> str:
    return f"([0-9a-f]{{{2 * size}}})"


_VOLUME_NAME = re.compile(_VOLUME)
_TIME_TEXT = re.compile(_TEXT_TIME)
_IN_VOLUME = re.compile(rf"volumes/{_VOLUME}/.+")
_MANIFEST = re.compile(
    rf"volumes/{_VOLUME}/manifests/{_NUMBER}-{_NUMBER}-{_NAME_TIME}-(full|incremental)-{_hex(8)}"
    rf"(?:-{_NUMBER}(?:-{_NUMBER})?(-shortcut)?)?"
)
_CHUNK = re.compile(rf"volumes/{_VOLUME}/chunks/([0-9a-f]{{2}})/{_hex(32)}-{_hex(16)}")
_CATALOG = re.compile(rf"volumes/{_VOLUME}/catalogs/{_hex(32)}-{_hex(16)}")
_DATA_KEY = re.compile(rf"volumes/{_VOLUME}/keys/{_hex(16)}(?:-{_NUMBER})?")
_GARBAGE = re.compile(rf"volumes/{_VOLUME}/garbage/{_NAME_TIME}-{_hex(8)}")
_TAG = re.compile(rf"volumes/{_VOLUME}/tags/{_NAME_TIME}-{_hex(8)}")
_WRITER = re.compile(rf"keys/writers/{_hex(16)}(?:-{_NUMBER})?")
_KEYSLOT = re.compile(rf"keys/slots/{_hex(8)}")
_ROSTER = re.compile(rf"keys/roster/{_NUMBER}")


def check_volume_name(name: str) -> None:
    """Raise `UsageError` unless `name` may name a volume."""
    if not _VOLUME_NAME.fullmatch(name):
        raise UsageError(
            f"use {name!r} as the name of a volume",
            "the form of the name is wrong",
            "use 1 to 63 letters, digits, dots, hyphens and underscores, a letter or digit first",
        )


def is_volume_name(name: str) -> bool:
    """Whether `name` may name a volume."""
    return _VOLUME_NAME.fullmatch(name) is not None


def _datetime(time_us: int) -> datetime:
    if not 0 <= time_us <= TIME_MAX_US:
        raise ValueError(f"{time_us} µs is outside of the years 1970 to 9999")
    return _EPOCH + timedelta(microseconds=time_us)


def _microseconds(iso: str) -> int | None:
    try:
        since = (datetime.fromisoformat(iso) - _EPOCH) // _MICROSECOND
    except ValueError:
        return None  # digits, but no date: a 13th month
    return since if since >= 0 else None


def format_time_us(time_us: int) -> str:
    """A time in microseconds since the epoch as `YYYY-MM-DDTHH:MM:SS.ffffffZ`."""
    return _datetime(time_us).isoformat(timespec="microseconds")[:26] + "Z"


def _name_time(time_us: int) -> str:
    """A time as it stands in object names: `YYYYMMDDTHHMMSSffffffZ`."""
    moment = _datetime(time_us).isoformat(timespec="microseconds")[:26]
    return moment.replace("-", "").replace(":", "").replace(".", "") + "Z"


def parse_time_us(text: str) -> int | None:
    """Microseconds since the epoch of what `format_time_us` made, None for any other text."""
    return _microseconds(text) if _TIME_TEXT.fullmatch(text) else None


def _number(value: int) -> str:
    if not 1 <= value <= NUMBER_MAX:
        raise ValueError(f"{value} is not from 1 to {NUMBER_MAX}")
    return f"{value:010d}"


def _parse_number(text: str | None) -> int | None:
    """The number that `_number` wrote; None for 0, and for no text."""
    return (int(text) or None) if text else None


class ManifestName(NamedTuple):
    """What a manifest's name says. `time_us` is microseconds since the epoch, `snapshot` 16 hex digits.

    `first` is 0 but for a manifest that stands for several: for those with the sequences from `first` to
    `sequence`. A shortcut does so beside them, a replacement in their place. `rewrites` is not 0 if what it
    refers to was written anew since the recovery points were made: the higher it is, the later that was.
    """

    volume: str
    sequence: int
    generation: int
    time_us: int
    kind: SnapshotKind
    snapshot: str
    first: int = 0
    is_shortcut: bool = False
    rewrites: int = 0

    @property
    def begins(self) -> int:
        """The lowest sequence that it stands for: its parent is the manifest with the one before."""
        return self.first or self.sequence

    @property
    def is_replacement(self) -> bool:
        """Whether it counts in the place of others."""
        return bool(self.first) and not self.is_shortcut

    def object_name(self) -> str:
        """The full name of the manifest's object."""
        numbers = f"{_number(self.sequence)}-{_number(self.generation)}"
        moment = _name_time(self.time_us)
        behind = f"-{_number(self.first)}" if self.first else ""
        behind += f"-{_number(self.rewrites)}" if self.rewrites else ""
        behind += "-shortcut" if self.is_shortcut else ""
        return f"{manifests_prefix(self.volume)}{numbers}-{moment}-{self.kind}-{self.snapshot}{behind}"

    @classmethod
    def parse(cls, name: str) -> ManifestName | None:
        """What an object's name says, None if it is not a manifest's."""
        match = _MANIFEST.fullmatch(name)
        if not match:
            return None
        volume, sequence, generation, seconds, fraction, kind, snapshot, *more = match.groups()
        first, rewrites, shortcut = more
        time_us = _microseconds(f"{seconds}.{fraction}Z")
        numbers = int(sequence), int(generation)
        begins = int(first or sequence)
        if time_us is None or 0 in (*numbers, begins, int(rewrites or 1)) or begins > numbers[0]:
            return None
        form: SnapshotKind = "full" if kind == "full" else "incremental"
        return cls(
            *(volume, *numbers, time_us, form, snapshot),
            first=int(first or 0),
            is_shortcut=bool(shortcut),
            rewrites=int(rewrites or 0),
        )


class ChunkName(NamedTuple):
    """What a chunk's name says: keyed hash of its content (32 bytes) and id of its data key (16)."""

    volume: str
    name_hash: bytes
    key_id: bytes


class CatalogName(NamedTuple):
    """What a catalog segment's name says: keyed hash (32 bytes) and id of its writer (16)."""

    volume: str
    name_hash: bytes
    writer_id: bytes


class DataKeyName(NamedTuple):
    """What a data key's name says; `roster` is the roster's sequence if it was sealed again for that."""

    volume: str
    key_id: bytes
    roster: int | None


class GarbageName(NamedTuple):
    """What a garbage list's name says. `time_us` is microseconds since the epoch, `id` 16 hex digits."""

    volume: str
    time_us: int
    id: str

    def object_name(self) -> str:
        """The full name of the list's object."""
        return f"{garbage_prefix(self.volume)}{_name_time(self.time_us)}-{self.id}"

    @classmethod
    def parse(cls, name: str) -> GarbageName | None:
        """What an object's name says, None if it is not a garbage list's."""
        match = _GARBAGE.fullmatch(name)
        if not match:
            return None
        volume, seconds, fraction, id_ = match.groups()
        time_us = _microseconds(f"{seconds}.{fraction}Z")
        return None if time_us is None else cls(volume, time_us, id_)


class TagName(NamedTuple):
    """What a tag's name says. `time_us` is microseconds since the epoch, `id` 16 hex digits."""

    volume: str
    time_us: int
    id: str

    def object_name(self) -> str:
        """The full name of the tag's object."""
        return f"{tags_prefix(self.volume)}{_name_time(self.time_us)}-{self.id}"

    @classmethod
    def parse(cls, name: str) -> TagName | None:
        """What an object's name says, None if it is not a tag's."""
        match = _TAG.fullmatch(name)
        if not match:
            return None
        volume, seconds, fraction, id_ = match.groups()
        time_us = _microseconds(f"{seconds}.{fraction}Z")
        return None if time_us is None else cls(volume, time_us, id_)


class WriterName(NamedTuple):
    """What a write key's name says; `roster` as in `DataKeyName`."""

    writer_id: bytes
    roster: int | None


def volume_of(name: str) -> str | None:
    """The volume that an object belongs to, None if it belongs to the repository."""
    match = _IN_VOLUME.fullmatch(name)
    return match[1] if match else None


def manifests_prefix(volume: str) -> str:
    """What all names of manifests of a volume begin with; sorted, they are in order of sequence."""
    return f"volumes/{volume}/manifests/"


def chunks_prefix(volume: str) -> str:
    """What all names of chunks of a volume begin with."""
    return f"volumes/{volume}/chunks/"


def catalogs_prefix(volume: str) -> str:
    """What all names of catalog segments of a volume begin with."""
    return f"volumes/{volume}/catalogs/"


def data_keys_prefix(volume: str) -> str:
    """What all names of data keys of a volume begin with."""
    return f"volumes/{volume}/keys/"


def volume_prefix(volume: str) -> str:
    """What all names of objects of a volume begin with."""
    return f"volumes/{volume}/"


def garbage_prefix(volume: str) -> str:
    """What all names of garbage lists of a volume begin with; sorted, they are in order of time."""
    return f"volumes/{volume}/garbage/"


def tags_prefix(volume: str) -> str:
    """What all names of tags of a volume begin with; sorted, they are in order of time."""
    return f"volumes/{volume}/tags/"


def chunk_name(volume: str, name_hash: bytes, key_id: bytes) -> str:
    """The name of a chunk."""
    digits = name_hash.hex()
    return f"volumes/{volume}/chunks/{digits[:2]}/{digits}-{key_id.hex()}"


def parse_chunk_name(name: str) -> ChunkName | None:
    """What an object's name says, None if it is not a chunk's."""
    match = _CHUNK.fullmatch(name)
    if not match or not match[3].startswith(match[2]):
        return None
    return ChunkName(match[1], bytes.fromhex(match[3]), bytes.fromhex(match[4]))


def catalog_name(volume: str, name_hash: bytes, writer_id: bytes) -> str:
    """The name of a catalog segment."""
    return f"{catalogs_prefix(volume)}{name_hash.hex()}-{writer_id.hex()}"


def parse_catalog_name(name: str) -> CatalogName | None:
    """What an object's name says, None if it is not a catalog segment's."""
    match = _CATALOG.fullmatch(name)
    return CatalogName(match[1], bytes.fromhex(match[2]), bytes.fromhex(match[3])) if match else None


def _again(roster: int | None) -> str:
    return "" if roster is None else f"-{_number(roster)}"


def data_key_name(volume: str, key_id: bytes, roster: int | None = None) -> str:
    """The name of a data key; `roster` if it is sealed again, for the recipients of that roster."""
    return f"{data_keys_prefix(volume)}{key_id.hex()}{_again(roster)}"


def parse_data_key_name(name: str) -> DataKeyName | None:
    """What an object's name says, None if it is not a data key's."""
    match = _DATA_KEY.fullmatch(name)
    if not match or (match[3] and _parse_number(match[3]) is None):
        return None
    return DataKeyName(match[1], bytes.fromhex(match[2]), _parse_number(match[3]))


def writer_name(writer_id: bytes, roster: int | None = None) -> str:
    """The name of a sealed write key; `roster` as for `data_key_name`."""
    return f"{WRITERS_PREFIX}{writer_id.hex()}{_again(roster)}"


def parse_writer_name(name: str) -> WriterName | None:
    """What an object's name says, None if it is not a write key's."""
    match = _WRITER.fullmatch(name)
    if not match or (match[2] and _parse_number(match[2]) is None):
        return None
    return WriterName(bytes.fromhex(match[1]), _parse_number(match[2]))


def keyslot_name(slot: str) -> str:
    """The name of a keyslot; `slot` is 16 hex digits."""
    return f"{KEYSLOTS_PREFIX}{slot}"


def parse_keyslot_name(name: str) -> str | None:
    """The slot that an object's name says, None if it is not a keyslot's."""
    match = _KEYSLOT.fullmatch(name)
    return match[1] if match else None


def roster_name(sequence: int) -> str:
    """The name of a roster."""
    return f"{ROSTERS_PREFIX}{_number(sequence)}"


def parse_roster_name(name: str) -> int | None:
    """The sequence that an object's name says, None if it is not a roster's."""
    match = _ROSTER.fullmatch(name)
    return _parse_number(match[1]) if match else None


def lease_name(volume: str) -> str:
    """The name of a volume's lease."""
    return f"volumes/{volume}/lease"


Disposable = ManifestName | ChunkName | CatalogName | DataKeyName
"""What a garbage list may name."""


def parse_disposable(name: str) -> Disposable | None:
    """What the name of a chunk, catalog segment, data key or manifest says; None for any other name."""
    kind = name.split("/", 3)[2:3]
    parse = _DISPOSABLE.get(kind[0]) if kind else None
    return parse(name) if parse else None


_DISPOSABLE: Final[dict[str, Callable[[str], Disposable | None]]] = {
    "chunks": parse_chunk_name,
    "catalogs": parse_catalog_name,
    "keys": parse_data_key_name,
    "manifests": ManifestName.parse,
}
