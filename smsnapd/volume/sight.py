"""What lstat shows of all names of a directory, taken at once and kept in columns; and the stamp of that.

One statx(2) for each name, called from C by way of `map`: no status object is made, and no entry either
while nothing asks for one. A directory with a stamp that is known already needs no more than this.
"""

from __future__ import annotations

import ctypes
import os
import stat
from array import array
from collections.abc import Iterable, Sequence
from itertools import chain, repeat
from operator import add, attrgetter
from typing import Final

from blake3 import blake3

from smsnapd.model import FORMATS, Entry, Kind

STAMP_BYTES: Final = 16
NAMES_AT_ONCE: Final = 512

_statx: Final = getattr(ctypes.CDLL(None), "statx", None)
# AT_SYMLINK_NOFOLLOW, AT_NO_AUTOMOUNT, and AT_EMPTY_PATH: the name b"" is the directory itself.
_FLAGS: Final = 0x100 | 0x800 | 0x1000
# STATX_BASIC_STATS without access time and blocks: nothing here asks for them.
_MASK: Final = 0x7FF & ~(0x20 | 0x400)
_ROW: Final = 256
_WORD: Final = 8
_WORDS: Final = _ROW // _WORD
# Words of struct statx (linux/stat.h): links and uid; gid and mode; inode; size; ctime and mtime, whose
# nanoseconds have a word too; the device.
_KEPT: Final = (2, 3, 4, 5, 12, 13, 14, 15)
_DEVICE: Final = 17

_SECOND_NS: Final = 10**9
_FORMAT: Final = 0o170000
_REGULAR: Final = int(Kind.REGULAR)
_DIRECTORY: Final = int(Kind.DIRECTORY)
_KINDS: Final = {stat.S_IFREG: _REGULAR, stat.S_IFDIR: _DIRECTORY, stat.S_IFLNK: int(Kind.SYMLINK)}
_FORMATS: Final = {kind: FORMATS[Kind(kind)] for kind in _KINDS.values()}
_PLAIN: Final = frozenset(_KINDS)
_numbers: Final = attrgetter(
    "name", "links", "uid", "gid", "inode", "size", "ctime_ns", "mtime_ns", "kind", "mode", "rdev"
)


class Sight:
    """Names in one directory, sorted, with what lstat shows of them: regular files, directories, symlinks.

    All are on one device. The name b"" stands for the directory itself.
    """

    __slots__ = ("_columns", "_formats", "_modes", "directories", "names")

    def __init__(self, names: list[bytes], columns: Sequence[array[int]]) -> None:
        """`columns` are words of struct statx, as many of each as there are names."""
        self.names = names
        self._columns = columns
        self._modes = memoryview(columns[1]).cast("B").cast("H")[2::4].tolist()
        self._formats = set(map(_FORMAT.__and__, set(self._modes)))
        self.directories = self._directories() if stat.S_IFDIR in self._formats else []
        """Name and inode of each directory in this one."""

    @property
    def is_plain(self) -> bool:
        """Whether there is nothing else among them."""
        return _PLAIN.issuperset(self._formats)

    @property
    def stamp(self) -> bytes:
        """16 bytes that two sights share only if no entry differs, as `changes.same_stat` has it."""
        head, sizes, times = self._columns[:3], self._columns[3], self._columns[4:]
        if self._formats != {stat.S_IFREG}:
            pairs = zip(self._modes, sizes, strict=True)
            sizes = array("Q", [size if mode & _FORMAT == stat.S_IFREG else 0 for mode, size in pairs])
        return _hash(self.names, *head, sizes, *times)

    def _directories(self) -> list[tuple[bytes, int]]:
        rows = zip(self.names, self._modes, self._columns[2], strict=True)
        return [(name, inode) for name, mode, inode in rows if mode & _FORMAT == stat.S_IFDIR and name]

    def entries(self) -> list[Entry]:
        """The entries, as `scan` gives them."""
        links_uid, gid_mode, inode, sizes, *times = self._columns
        links, uid, gid = (_halves(links_uid, 0), _halves(links_uid, 1), _halves(gid_mode, 0))
        kinds = [_KINDS[mode & _FORMAT] for mode in self._modes]
        of = [0 if kind == _DIRECTORY else size for kind, size in zip(kinds, sizes, strict=True)]
        modes = [mode & 0o7777 for mode in self._modes]
        ctime, mtime = _joined(*times[:2]), _joined(*times[2:])
        return list(map(Entry, self.names, kinds, repeat(0), modes, uid, gid, of, mtime, ctime, inode, links))


class Sights:
    """Takes sights of directories on one device; not for several threads."""

    def __init__(self, device: int) -> None:
        """`device` is what `st_dev` must be."""
        self._device = array("I", [os.major(device), os.minor(device)]).tobytes()
        self._words = array("Q", bytes(_ROW * NAMES_AT_ONCE))
        memory = (ctypes.c_char * (_ROW * NAMES_AT_ONCE)).from_buffer(self._words)
        self._rows = [ctypes.byref(memory, _ROW * row) for row in range(NAMES_AT_ONCE)]

    def take(self, descriptor: int, names: list[bytes]) -> Sight | None:
        """A sight of these names in the open directory, at least one.

        None if there is anything to say of one of them: it is gone, on another device, or of another kind.
        """
        if _statx is None:
            return None
        columns: list[array[int]] = []
        for start in range(0, len(names), NAMES_AT_ONCE):
            batch = names[start : start + NAMES_AT_ONCE]
            if any(map(_statx, repeat(descriptor), batch, repeat(_FLAGS), repeat(_MASK), self._rows)):
                return None
            words, end = self._words, len(batch) * _WORDS
            if words[_DEVICE:end:_WORDS].tobytes() != self._device * len(batch):
                return None
            seen = [words[word:end:_WORDS] for word in _KEPT]
            columns = list(map(add, columns, seen)) if columns else seen
        sight = Sight(names, columns)
        return sight if sight.is_plain else None


def stamp_of(entries: Sequence[Entry]) -> bytes:
    """The stamp of the sight that would give these entries; b"" if none would, or it must not be trusted.

    What lies in an index may have come from a catalog that anyone could write: numbers may be anything.
    """
    if not entries:
        return b""
    columns = zip(*map(_numbers, entries), strict=True)
    names, links, uid, gid, inode, size, ctime, mtime, kind, mode, rdev = columns
    if any(rdev) or max(mode) > 0o7777 or not _FORMATS.keys() >= set(kind):
        return b""
    if set(kind) != {_REGULAR}:
        size = tuple(of if which == _REGULAR else 0 for which, of in zip(kind, size, strict=True))
    modes = [_FORMATS[which] | bits for which, bits in zip(kind, mode, strict=True)]
    try:
        return _hash(
            names,
            _paired(links, uid),
            _paired(gid, modes),
            array("Q", inode),
            array("Q", size),
            *_split(ctime),
            *_split(mtime),
        )
    except OverflowError:
        return b""


def _hash(names: Sequence[bytes], *columns: array[int]) -> bytes:
    # The length tells where the names end: NUL is in none of them, but in the numbers.
    joined = b"\0".join(names)
    return blake3(b"".join((len(joined).to_bytes(8, "little"), joined, *columns))).digest(STAMP_BYTES)


def _paired(first: Iterable[int], second: Iterable[int]) -> array[int]:
    """Words that have one in each half, as they lie in memory."""
    return array("I", chain.from_iterable(zip(first, second, strict=True)))


def _halves(words: array[int], which: int) -> list[int]:
    """One half of each word, as it lies in memory."""
    return memoryview(words).cast("B").cast("I")[which::2].tolist()


def _split(times: Sequence[int]) -> tuple[array[int], array[int]]:
    """Columns of seconds, which may be negative, and of nanoseconds."""
    return array("q", [time // _SECOND_NS for time in times]), array(
        "Q", [time % _SECOND_NS for time in times]
    )


def _joined(seconds: array[int], nanoseconds: array[int]) -> list[int]:
    signed = memoryview(seconds).cast("B").cast("q")
    halves = _halves(nanoseconds, 0)
    return [whole * _SECOND_NS + part for whole, part in zip(signed, halves, strict=True)]
