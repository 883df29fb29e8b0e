"""Canonical JSON, and its members read one by one: of the right form, or refused as damage."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final, NoReturn

from smsnapd.errors import DamageError
from smsnapd.format.names import parse_time_us

INTEGER_MAX: Final = 2**63 - 1
UPGRADE: Final = "use a later smsnapd"
"""The hint for what only a later version reads."""


def canonical_json(value: Mapping[str, object]) -> bytes:
    """Canonical JSON (FORMAT.md, section 1) of an object of integers, texts, lists and objects."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")


def parse_canonical_json(data: bytes, what: str) -> Members:
    """The object that `data` is, `DamageError` unless it is exactly its canonical JSON.

    That also refuses duplicate members, which readers would understand in different ways, and lone
    surrogates, which no UTF-8 can hold.
    """
    try:
        value = json.loads(data.decode("ascii"), parse_float=_no_number, parse_constant=_no_number)
        canonical = isinstance(value, dict) and canonical_json(value) == data
        if b"\\ud" in data:
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise DamageError(what, "its JSON cannot be parsed") from error
    if not canonical:
        raise DamageError(what, "its JSON is not canonical")
    return Members(value, what)


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not an integer")


def parse_hex(text: object, size: int) -> bytes | None:
    """The `size` bytes that lower-case hex stands for, None if `text` is not exactly that."""
    if not isinstance(text, str) or len(text) != 2 * size:
        return None
    try:
        value = bytes.fromhex(text)
    except ValueError:
        return None
    return value if value.hex() == text else None  # `fromhex` takes upper case and white space


class Members:
    """The members of one JSON object. Every method raises `DamageError` if a member has another form.

    Members that nobody asks for are ignored. `what` is the operation, for messages.
    """

    def __init__(self, values: Mapping[str, object], what: str) -> None:
        self._values = values
        self._what = what

    def _get(self, name: str) -> object:
        if name not in self._values:
            raise DamageError(self._what, f"the member {name!r} is missing")
        return self._values[name]

    def refuse(self, name: str, expected: str) -> NoReturn:
        """Raise the `DamageError` for a member that is not what is `expected`."""
        raise DamageError(self._what, f"the member {name!r} is not {expected}")

    def names(self) -> list[str]:
        """The names of all members."""
        return list(self._values)

    def canonical_without(self, name: str) -> bytes:
        """The canonical JSON of all members but one."""
        return canonical_json({key: value for key, value in self._values.items() if key != name})

    def is_null(self, name: str) -> bool:
        """Whether the member is null."""
        return self._get(name) is None

    def text(self, name: str) -> str:
        """A text."""
        return self._text(name, self._get(name))

    def _text(self, name: str, value: object) -> str:
        if not isinstance(value, str):
            self.refuse(name, "a text")
        return value

    def texts(self, name: str) -> list[str]:
        """A list of texts."""
        return [self._text(name, value) for value in self._list(name)]

    def _list(self, name: str) -> list[object]:
        value = self._get(name)
        if not isinstance(value, list):
            self.refuse(name, "a list")
        return value

    def truth(self, name: str) -> bool:
        """true or false."""
        value = self._get(name)
        if not isinstance(value, bool):
            self.refuse(name, "true or false")
        return value

    def integer(self, name: str, lowest: int = 0, highest: int = INTEGER_MAX) -> int:
        """An integer from `lowest` to `highest`."""
        value = self._get(name)
        if type(value) is not int or not lowest <= value <= highest:  # a bool is an int, too
            self.refuse(name, f"an integer from {lowest} to {highest}")
        return value

    def hex(self, name: str, size: int) -> bytes:
        """`size` bytes in lower-case hex."""
        value = parse_hex(self._get(name), size)
        if value is None:
            self.refuse(name, f"{size} bytes in lower-case hex")
        return value

    def hexes(self, name: str, size: int) -> list[bytes]:
        """A list of different values of `size` bytes each."""
        values = [parse_hex(value, size) for value in self._list(name)]
        found = [value for value in values if value is not None]
        if len(found) != len(values) or len(set(found)) != len(found):
            self.refuse(name, f"a list of different values of {size} bytes in lower-case hex")
        return found

    def time_us(self, name: str) -> int:
        """A time, in microseconds since the epoch."""
        value = parse_time_us(self.text(name))
        if value is None:
            self.refuse(name, "a time")
        return value

    def nested(self, name: str) -> Members:
        """An object."""
        return self._nested(name, self._get(name))

    def _nested(self, name: str, value: object) -> Members:
        if not isinstance(value, dict):
            self.refuse(name, "an object")
        return Members(value, self._what)

    def objects(self, name: str) -> list[Members]:
        """A list of objects."""
        return [self._nested(name, value) for value in self._list(name)]
