"""A month's bill: the sums by hand, what small objects cost, and other prices."""

from __future__ import annotations

import pytest

from smsnapd.errors import UsageError
from smsnapd.store.prices import LISTED, Monthly, Stock, bill, priced

GB = 2**30


def stock_of(*objects: tuple[str, int]) -> Stock:
    stock = Stock(LISTED)
    for storage_class, size in objects:
        stock.add(storage_class, size)
    return stock


def test_a_bill_by_hand() -> None:
    monthly = Monthly(puts=2_000_000, gets=1_000_000, lists=10_000, bytes_down=5 * GB)
    result = bill(stock_of(("STANDARD", 60 * GB), ("STANDARD", 40 * GB)), monthly, LISTED)
    (part,) = result.classes
    assert (part.objects, part.bytes, part.billed_bytes) == (2, 100 * GB, 100 * GB)
    assert part.storage == pytest.approx(2.30)
    assert part.put == pytest.approx(10.0)
    assert part.get == pytest.approx(0.40)
    assert (part.retrieval, part.monitoring) == (0, 0)
    assert result.listing == pytest.approx(0.05)
    assert result.total == pytest.approx(12.75)


@pytest.mark.parametrize("storage_class", ["STANDARD_IA", "ONEZONE_IA", "GLACIER_IR"])
def test_small_objects_of_cheap_classes_are_billed_as_128_kb(storage_class: str) -> None:
    result = bill(
        stock_of((storage_class, 1), (storage_class, 131_072), (storage_class, 200_000)), Monthly(), LISTED
    )
    (part,) = result.classes
    assert (part.bytes, part.billed_bytes) == (331_073, 2 * 131_072 + 200_000)
    assert part.storage == pytest.approx(part.billed_bytes / GB * LISTED.classes[storage_class].storage)


def test_standard_has_no_least_size_and_tiering_monitors_large_ones() -> None:
    result = bill(
        stock_of(("STANDARD", 1), *[("INTELLIGENT_TIERING", size) for size in (1, 131_072)]),
        Monthly(),
        LISTED,
    )
    tiering, standard = result.classes
    assert (standard.billed_bytes, tiering.billed_bytes) == (1, 131_073)
    assert tiering.monitoring == pytest.approx(0.0025 / 1000)


def test_requests_are_split_as_objects_are_and_reading_as_bytes_are() -> None:
    stock = stock_of(*[("STANDARD", 0)] * 3, ("GLACIER_IR", GB))
    ir, standard = bill(stock, Monthly(puts=4000, gets=8000, bytes_down=2 * GB), LISTED).classes
    assert (standard.put, ir.put) == (pytest.approx(3 * 0.005), pytest.approx(0.02))
    assert (standard.get, ir.get) == (pytest.approx(6 * 0.0004), pytest.approx(2 * 0.01))
    assert (standard.retrieval, ir.retrieval) == (0, pytest.approx(0.06))


def test_an_empty_repository_costs_its_requests() -> None:
    result = bill(stock_of(), Monthly(puts=1000, lists=1000), LISTED)
    assert result.total == pytest.approx(0.01)


def test_a_class_without_a_price_is_named() -> None:
    result = bill(stock_of(("DEEP_ARCHIVE", GB), ("STANDARD", GB)), Monthly(), LISTED)
    assert result.unpriced == ("DEEP_ARCHIVE",)
    assert result.total == pytest.approx(0.023)


def test_prices_can_be_replaced() -> None:
    prices = priced(["standard.storage=0.1", "LIST=1", "glacier_ir.retrieval=0"])
    assert (prices.list, prices.classes["STANDARD"].storage) == (1, 0.1)
    assert prices.classes["GLACIER_IR"].retrieval == 0
    assert LISTED.classes["STANDARD"].storage == 0.023
    assert prices.classes["STANDARD"].put == LISTED.classes["STANDARD"].put


@pytest.mark.parametrize(
    "text",
    [
        *("", "list", "list=", "list=-1", "list=nan", "list=inf", "list=x", "=1", "storage=1"),
        *(
            "standard=1",
            "standard.x=1",
            "standard.least_bytes=1",
            "glacier.storage=1",
            "standard.storage.x=1",
        ),
    ],
)
def test_what_is_no_price_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        priced([text])
    assert caught.value.hint
