"""What S3 asks for a month: a small table of prices, and the sum. Nothing here reaches anybody.

US dollars, list prices of us-east-1 (aws.amazon.com/s3/pricing), as of 2026-11-23, for the first 50 TB; other
regions ask up to twice as much. A GB is 2^30 bytes. Not in it: transfer out of the region, KMS, old versions
of objects, charges for objects that are deleted before a class's least time.

>>> stock = Stock(priced(["standard.storage=0.02"]))
>>> stock.add("STANDARD", 50 * 2**30)
>>> round(bill(stock, Monthly(puts=1000), priced(["standard.storage=0.02"])).total, 3)
1.005
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final, NamedTuple

from smsnapd.errors import UsageError

DATE: Final = "2026-11-23"
SOURCE: Final = "aws.amazon.com/s3/pricing, us-east-1"
CURRENCY: Final = "USD"
MONTH_S: Final = 730 * 3600.0
"""The month that AWS reckons with."""

_GB: Final = 2**30
_SMALL: Final = 128 * 1024
"""Bytes that an object of the cheaper classes is billed as, at least; and below which none is monitored."""


@dataclass(frozen=True)
class ClassPrices:
    """Of a storage class: a GB and month, 1,000 puts, 1,000 gets, a GB read, 1,000 objects monitored a month.

    Objects are billed as `least_bytes` at least, and for `least_days` even if they are deleted before.
    """

    storage: float
    put: float
    get: float
    retrieval: float = 0.0
    monitoring: float = 0.0
    least_bytes: int = 0
    least_days: int = 0


@dataclass(frozen=True)
class Prices:
    """Those of each storage class by its name in S3, and of 1,000 listings. Deleting costs nothing."""

    classes: Mapping[str, ClassPrices]
    list: float


LISTED: Final = Prices(
    {
        "STANDARD": ClassPrices(0.023, 0.005, 0.0004),
        "STANDARD_IA": ClassPrices(0.0125, 0.01, 0.001, 0.01, least_bytes=_SMALL, least_days=30),
        "ONEZONE_IA": ClassPrices(0.01, 0.01, 0.001, 0.01, least_bytes=_SMALL, least_days=30),
        # Its dearest tier: what is not read for 30 days moves to one at 0.0125 by itself.
        "INTELLIGENT_TIERING": ClassPrices(0.023, 0.005, 0.0004, monitoring=0.0025),
        "GLACIER_IR": ClassPrices(0.004, 0.02, 0.01, 0.03, least_bytes=_SMALL, least_days=90),
    },
    list=0.005,
)


_FIELDS: Final = [item.name for item in fields(ClassPrices) if not item.name.startswith("least_")]
_KEYS: Final = {"list", *(f"{name.lower()}.{field}" for name in LISTED.classes for field in _FIELDS)}


class Monthly(NamedTuple):
    """What is asked in a month: writes, reads, listings, and the bytes read."""

    puts: float = 0.0
    gets: float = 0.0
    lists: float = 0.0
    bytes_down: float = 0.0


class ClassBill(NamedTuple):
    """A class's part of the bill, in dollars, and what it is for; all 0 if the class has no price here."""

    storage_class: str
    objects: int
    bytes: int
    billed_bytes: int
    storage: float
    put: float
    get: float
    retrieval: float
    monitoring: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.storage + self.put + self.get + self.retrieval + self.monitoring


class Bill(NamedTuple):
    """A month's estimate in dollars, by storage class; `unpriced` are classes that the table has not."""

    classes: tuple[ClassBill, ...]
    listing: float
    unpriced: tuple[str, ...]

    @property
    def total(self) -> float:
        """All of it."""
        return self.listing + sum(item.total for item in self.classes)


@dataclass
class _Held:
    objects: int = 0
    bytes: int = 0
    billed_bytes: int = 0
    monitored: int = 0


class Stock:
    """Counts objects by storage class, as they are billed by `prices`."""

    def __init__(self, prices: Prices) -> None:
        self._prices = prices
        self.held: dict[str, _Held] = {}

    def add(self, storage_class: str, size: int) -> None:
        """Count an object of `size` bytes."""
        held = self.held.setdefault(storage_class, _Held())
        prices = self._prices.classes.get(storage_class)
        held.objects += 1
        held.bytes += size
        held.billed_bytes += max(size, prices.least_bytes if prices else 0)
        held.monitored += size >= _SMALL


def bill(stock: Stock, monthly: Monthly, prices: Prices) -> Bill:
    """What a month costs with what lies there now.

    Which class a request goes to is not counted: puts and gets are split as the objects are, and the bytes
    read as the bytes are. With no object at all everything is taken for STANDARD's.
    """
    held = stock.held or {"STANDARD": _Held()}
    objects = sum(item.objects for item in held.values())
    size = sum(item.bytes for item in held.values())
    classes = []
    for name in sorted(held):
        item = held[name]
        part = item.objects / objects if objects else 1.0
        read = monthly.bytes_down * (item.bytes / size if size else part)
        found = prices.classes.get(name, ClassPrices(0.0, 0.0, 0.0))
        classes.append(
            _class_bill(name, item, Monthly(monthly.puts * part, monthly.gets * part, 0, read), found)
        )
    unpriced = tuple(sorted(set(held) - set(prices.classes)))
    return Bill(tuple(classes), monthly.lists / 1000 * prices.list, unpriced)


def _class_bill(name: str, held: _Held, asked: Monthly, prices: ClassPrices) -> ClassBill:
    return ClassBill(
        name,
        held.objects,
        held.bytes,
        held.billed_bytes,
        storage=held.billed_bytes / _GB * prices.storage,
        put=asked.puts / 1000 * prices.put,
        get=asked.gets / 1000 * prices.get,
        retrieval=asked.bytes_down / _GB * prices.retrieval,
        monitoring=held.monitored / 1000 * prices.monitoring,
    )


def priced(overrides: Sequence[str]) -> Prices:
    """The listed prices with some replaced: `list=0.0055`, `standard.storage=0.0245`; else `UsageError`."""
    prices = LISTED
    for text in overrides:
        key, equals, number = text.partition("=")
        storage_class, _, field = key.upper().rpartition(".")
        value = _price(text, number) if equals else None
        if value is None or key.lower() not in _KEYS:
            hint = "write list=0.0055 or standard.storage=0.0245; smsnap cost --help names all"
            raise UsageError(f"use the price {text!r}", "there is no such price", hint)
        if not storage_class:
            prices = replace(prices, list=value)
            continue
        change: dict[str, Any] = {field.lower(): value}
        changed = replace(prices.classes[storage_class], **change)
        prices = replace(prices, classes={**prices.classes, storage_class: changed})
    return prices


def _price(text: str, number: str) -> float:
    try:
        value = float(number)
    except ValueError:
        value = -1.0
    if not math.isfinite(value) or value < 0:
        raise UsageError(
            f"use the price {text!r}", "it is no amount of dollars", "write for example list=0.0055"
        )
    return value
