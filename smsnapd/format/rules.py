"""The rules that the entries of a catalog segment obey, whoever wrote it (FORMAT.md, section 8).

The writer holds its columns to them as the reader does, so that no catalog is committed that cannot be read.
Whole columns are looked at, at C's speed, never entry by entry.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate, compress, islice
from operator import add, ge, gt, lt
from typing import Final

from smsnapd.format.columns import MalformedError
from smsnapd.format.segment import CHUNK_LIMIT, Columns
from smsnapd.model import BLOCK, Flag, Kind, directory_key

_CODE_SHIFT: Final = 3
_KIND_MASK: Final = (1 << _CODE_SHIFT) - 1


def check_columns(columns: Columns, sizes: list[int]) -> None:
    """Hold `columns`, whose numbers are in range, and the sizes of the entries to every other rule.

    Raises `MalformedError`.
    """
    _check_directories(columns.directories)
    _check_names(columns)
    _check_extents(columns)
    codes = _codes(columns)
    _check_kinds(columns, codes)
    _check_targets(columns, codes)
    if sizes and (min(sizes) < 0 or max(sizes) >= 1 << 63):
        raise MalformedError("a size is out of range")
    _check_pieces(columns, codes, sizes)


def check_places(columns: Columns, contents: Sequence[int]) -> None:
    """Every extent of `columns` ends within its chunk, whose content has as many bytes as `contents` says.

    There must be that many chunks. Raises `MalformedError`.
    """
    ends = map(add, columns.offsets, columns.lengths)
    if any(map(gt, ends, map(contents.__getitem__, columns.chunks))):
        raise MalformedError("an extent goes beyond the end of its chunk")


def _codes(columns: Columns) -> list[int]:
    """Of each entry its kind and, further up, its flags: one small number that says what it is."""
    if not any(columns.flags):
        return columns.kinds
    return [kind | flags << _CODE_SHIFT for kind, flags in zip(columns.kinds, columns.flags, strict=True)]


def _is_alias(code: int) -> bool:
    return bool(code >> _CODE_SHIFT & Flag.ALIAS) and code & _KIND_MASK != Kind.TOMBSTONE


def _check_paths(paths: Iterable[bytes]) -> None:
    """All of `paths` are canonical, and none is the root."""
    joined = b"/" + b"/".join(paths) + b"/"
    if any(bad in joined for bad in (b"//", b"/./", b"/../", b"\0")):
        raise MalformedError("a path is not canonical")


def _check_directories(directories: list[bytes]) -> None:
    below = directories[1:] if directories[:1] == [b""] else directories
    if below:
        _check_paths(below)
    keys = list(map(directory_key, directories))
    if not all(map(lt, keys, islice(keys, 1, None))):
        raise MalformedError("its directories are not in order")


def _check_names(columns: Columns) -> None:
    """Names are canonical and rise strictly in each directory; only the root's is empty."""
    names, counts = columns.names, columns.directory_counts
    joined = b"".join(names)
    if b"/" in joined or b"\0" in joined or not {b".", b".."}.isdisjoint(names):
        raise MalformedError("a name is not canonical")
    starts = list(accumulate(counts, initial=0))[:-1]
    falls = compress(range(1, len(names)), map(ge, names, islice(names, 1, None)))
    if not set(starts).issuperset(falls):
        raise MalformedError("its entries are not in order")
    firsts = zip(columns.directories, map(names.__getitem__, starts), strict=True)
    empty = [directory for directory, name in firsts if not name]
    if empty and (empty != [b""] or columns.kinds[0] != Kind.DIRECTORY):
        raise MalformedError("an entry has no name, or the root is no directory")


def _check_extents(columns: Columns) -> None:
    if not columns.offsets:
        return
    if min(columns.offsets) < 0 or max(map(add, columns.offsets, columns.lengths)) > CHUNK_LIMIT:
        raise MalformedError("an extent does not lie in its chunk")


def _check_kinds(columns: Columns, codes: list[int]) -> None:
    """Every kind has the flags, extents and slack that it may have; most entries share a few triples."""
    for code, count, slack in set(zip(codes, columns.extent_counts, columns.slack, strict=True)):
        kind, flags = code & _KIND_MASK, code >> _CODE_SHIFT
        if kind == Kind.TOMBSTONE:
            good = count == 0
        elif flags & Flag.ALIAS:
            sized = kind in (Kind.REGULAR, Kind.SYMLINK)
            good = count == 1 and kind != Kind.DIRECTORY and (slack <= 0 if sized else slack == 0)
        elif kind == Kind.REGULAR:
            good = count >= 1 and (bool(flags & Flag.SPARSE) or 0 <= slack < (BLOCK if count > 1 else 1))
        else:
            good = count == 1 and slack == 0
        misplaced = (flags & Flag.SPARSE and kind not in (Kind.REGULAR, Kind.TOMBSTONE)) or (
            flags & Flag.ANEW and kind not in (Kind.DIRECTORY, Kind.TOMBSTONE)
        )
        if not good or misplaced:
            raise MalformedError("an entry's flags, extents or slack do not fit its kind")


def _check_targets(columns: Columns, codes: list[int]) -> None:
    """Symlinks and aliases have a target, an alias a canonical one, other entries none."""
    targets = columns.targets
    if b"\0" in b"".join(targets):
        raise MalformedError("a target holds a NUL byte")
    owners = set(compress(codes, targets))
    if any(
        code & _KIND_MASK not in (Kind.SYMLINK, Kind.TOMBSTONE) and not _is_alias(code) for code in owners
    ):
        raise MalformedError("an entry has a target that may not have one")
    aliases = set(filter(_is_alias, set(codes)))
    if aliases:
        _check_paths([target for code, target in zip(codes, targets, strict=True) if code in aliases])


def _check_pieces(columns: Columns, codes: list[int], sizes: list[int]) -> None:
    """The data segments of each sparse file rise, are aligned and fit its size and its content extents."""
    sparse = {code for code in set(codes) if code >> _CODE_SHIFT & Flag.SPARSE and code & _KIND_MASK}
    if not set(compress(codes, columns.piece_counts)) <= sparse:
        raise MalformedError("an entry has data segments and is not sparse")
    if not sparse:
        return
    start = 0
    for code, count, size, slack in zip(codes, columns.piece_counts, sizes, columns.slack, strict=True):
        if code in sparse:
            offsets = columns.piece_offsets[start : start + count]
            lengths = columns.piece_lengths[start : start + count]
            _check_map(offsets, lengths, size)
            padded = -(-sum(lengths) // BLOCK) * BLOCK
            if not _is_alias(code) and padded != size + slack:
                raise MalformedError("a sparse file's data and its extents differ in length")
        start += count


def _check_map(offsets: list[int], lengths: list[int], size: int) -> None:
    """The data segments of one sparse file: aligned, rising, all within its size."""
    ends = list(map(add, offsets, lengths))
    unaligned = any(offset % BLOCK for offset in offsets) or any(length % BLOCK for length in lengths[:-1])
    if unaligned or any(map(lt, islice(offsets, 1, None), ends)):
        raise MalformedError("a sparse file's data segments are not aligned or not in order")
    if ends and (ends[-1] > size or (lengths[-1] % BLOCK and ends[-1] != size)):
        raise MalformedError("a sparse file's data segments do not fit its size")
