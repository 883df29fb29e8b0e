"""Columns of a catalog segment: many integers or many strings as few, compressible bytes.

The form is that of FORMAT.md, section 8. Integers come apart into planes, one for each byte, because the
high bytes of neighbours are alike and the low ones are not: that is what a compressor wants to see.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from itertools import accumulate, chain, islice
from operator import add, sub
from struct import Struct
from typing import Final

import zstandard

PLAIN: Final = 0
DELTA: Final = 1
BESIDE: Final = 2

_WORD: Final = 1 << 64
_HALF: Final = 1 << 63
_HEAD: Final = Struct("<BBq")
_EMPTY: Final = _HEAD.pack(PLAIN, 0, 0)
_LENGTH_LIMIT: Final = (1 << 32) - 1
_OUT_OF_RANGE: Final = "a number is out of range"
_SMALL: Final = (1 << 16) - 1
_SAMPLE: Final = 2048
_CLOSE: Final = 0.99
_ARRAYS: Final = ((1, "B"), (2, "H"), (4, "I"), (8, "Q"))


class MalformedError(Exception):
    """Values or bytes that no column or segment may have. Translated where it is known whose they are."""


class Reader:
    """Bytes, taken from the front; taking more than there are raises `MalformedError`."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def take(self, size: int) -> bytes:
        """The next `size` bytes."""
        end = self._position + size
        if end > len(self._data):
            raise MalformedError("it ends too early")
        piece = self._data[self._position : end]
        self._position = end
        return piece

    @property
    def left(self) -> int:
        """How many bytes were not taken yet."""
        return len(self._data) - self._position


def encode_ints(values: Sequence[int], low: int, high: int, beside: Sequence[int] | None = None) -> bytes:
    """An int column of `values`, in the encoding that compresses best.

    `low` and `high` bound the values; the numbers between them are all i64 or all u64. `beside` is the
    column before, of the same count, if the values may be stored as differences to it. Which encoding
    is taken depends on the release of zstd; how it is read does not. Raises `MalformedError`.
    """
    if not values:
        return _EMPTY
    same = values[0] == values[-1] and values.count(values[0]) == len(values)
    least, most = (values[0], values[0]) if same else (min(values), max(values))
    if least < low or most > high:
        raise MalformedError(_OUT_OF_RANGE)
    encoding = _best(values, beside) if most - least > _SMALL else PLAIN
    if encoding == PLAIN:
        return _pack(PLAIN, values, least, most)
    numbers = _differences(encoding, values, beside)
    return _pack(encoding, numbers, min(numbers), max(numbers))


def decode_ints(
    reader: Reader, count: int, low: int, high: int, beside: Sequence[int] | None = None
) -> list[int]:
    """The `count` numbers of an int column, all from `low` to `high`. The caller has bounded `count`.

    They are u64 if `high` needs it, else i64. Raises `MalformedError`.
    """
    encoding, width, base = _HEAD.unpack(reader.take(_HEAD.size))
    if encoding > (DELTA if beside is None else BESIDE) or width > 8:
        raise MalformedError("a column has an unknown encoding")
    if not count:
        if encoding or width or base:
            raise MalformedError("a column without values is not empty")
        return []
    values = _numbers(reader.take(width * count), width, count, base)
    if encoding == PLAIN and low <= base and base + (1 << 8 * width) - 1 <= high:
        return values
    if encoding == DELTA:
        values = list(accumulate(values))
    elif encoding == BESIDE and beside is not None:
        values = list(map(add, values, beside))
    return _bounded(values, low, high)


def _bounded(values: list[int], low: int, high: int) -> list[int]:
    """`values` modulo 2^64; an error unless all are from `low` to `high` then."""
    if min(values) >= low and max(values) <= high:
        return values
    origin = 0 if high >= _HALF else -_HALF
    values = [(value - origin) % _WORD + origin for value in values]
    if min(values) < low or max(values) > high:
        raise MalformedError(_OUT_OF_RANGE)
    return values


def encode_strings(strings: Sequence[bytes]) -> bytes:
    """A bytes column: the lengths as an int column, and the strings, joined."""
    return encode_ints(list(map(len, strings)), 0, _LENGTH_LIMIT) + b"".join(strings)


def decode_strings(reader: Reader, count: int) -> list[bytes]:
    """The `count` strings of a bytes column. Raises `MalformedError`."""
    lengths = decode_ints(reader, count, 0, _LENGTH_LIMIT)
    joined = reader.take(sum(lengths))
    if not joined:
        return [b""] * count
    ends = list(accumulate(lengths))
    return [joined[start:end] for start, end in zip(chain((0,), ends), ends, strict=False)]


def _best(values: Sequence[int], beside: Sequence[int] | None) -> int:
    """The encoding that compresses a run of rows from the middle best; the plain one if it is close."""
    start = max(0, len(values) - _SAMPLE) // 2
    sample = values[start : start + _SAMPLE]
    neighbours = None if beside is None else beside[start : start + _SAMPLE]
    best, size = PLAIN, _trial(sample) * _CLOSE
    for encoding in (DELTA,) if neighbours is None else (DELTA, BESIDE):
        other = _trial(_differences(encoding, sample, neighbours))
        if other < size:
            best, size = encoding, other
    return best


def _differences(encoding: int, values: Sequence[int], beside: Sequence[int] | None) -> list[int]:
    """What is stored of `values` in an encoding that is not plain."""
    if encoding == BESIDE and beside is not None:
        return list(map(sub, values, beside))
    return [values[0], *map(sub, islice(values, 1, None), values)]


def _trial(numbers: Sequence[int]) -> int:
    """The compressed size of a column of `numbers`."""
    column = _pack(PLAIN, numbers, min(numbers), max(numbers))
    return len(zstandard.ZstdCompressor(level=1).compress(column))


def _pack(encoding: int, numbers: Sequence[int], least: int, most: int) -> bytes:
    """The column of `numbers` from `least` to `most`, in as few planes as hold them."""
    base = least if least < 0 or least == most else 0
    width = ((most - base).bit_length() + 7) // 8
    if width > 8:  # differences of distant numbers: the modulus brings them back into 64 bits
        numbers, base, width = [number % _WORD for number in numbers], 0, 8
    head = _HEAD.pack(encoding, width, _signed(base))
    if not width:
        return head
    if width == 1 and not base:
        return head + bytes(numbers)
    step, code = next(pair for pair in _ARRAYS if pair[0] >= width)
    words = array(code, [number - base for number in numbers] if base else numbers)
    if sys.byteorder == "big":
        words.byteswap()
    raw = words.tobytes()
    return head + b"".join([raw[plane::step] for plane in range(width)])


def _numbers(planes: bytes, width: int, count: int, base: int) -> list[int]:
    """The numbers of `planes`, with `base` added."""
    if not width:
        return [base] * count
    if width == 1 and not base:
        return list(planes)
    step, code = next(pair for pair in _ARRAYS if pair[0] >= width)
    raw = bytearray(step * count)
    for plane in range(width):
        raw[plane::step] = planes[plane * count : (plane + 1) * count]
    words = array(code, bytes(raw))
    if sys.byteorder == "big":
        words.byteswap()
    return [word + base for word in words] if base else words.tolist()


def _signed(number: int) -> int:
    """`number` modulo 2^64, as i64."""
    return (number + _HALF) % _WORD - _HALF
