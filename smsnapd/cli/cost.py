"""`smsnap cost`: what a month of the repository costs, estimated."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from smsnapd.cli import output
from smsnapd.cli.options import verb
from smsnapd.cli.session import Session
from smsnapd.cli.times import utc_text
from smsnapd.errors import UsageError
from smsnapd.store.prices import (
    CURRENCY,
    DATE,
    MONTH_S,
    SOURCE,
    Bill,
    ClassBill,
    Monthly,
    Prices,
    Stock,
    bill,
    priced,
)
from smsnapd.telemetry.sizes import size_text

if TYPE_CHECKING:
    from smsnapd.daemon.totals import Month
    from smsnapd.store.s3_stock import Stocked

_DAY_S = 86400.0
_HEADER = ("CLASS", "OBJECTS", "STORED", "STORAGE", "PUT", "GET", "READ", "TOTAL")

EXAMPLES = """
smsnap cost
smsnap cost --price standard.storage=0.0245 --price list=0.0054
"""
REPORT = """
{"currency": "USD", "prices": {"source", "date", "overridden": [text]}, "basis": "daemon" or
 "repository", "since", "until", "recovery_points",
 "monthly": {"put", "get", "list", "bytes_down"},
 "classes": [{"class", "objects", "bytes", "billed_bytes", "storage", "put", "get",
 "retrieval", "monitoring", "total"}], "list", "total", "notes": [text]}
"basis" says where the month's requests are from; amounts are those of a month
"""


class _Basis(NamedTuple):
    """What a month's requests are reckoned from, and why."""

    name: str
    monthly: Monthly
    since_s: float
    until_s: float
    notes: tuple[str, ...]


@verb("cost", examples=EXAMPLES, report=REPORT)
@click.option(
    "--price", "prices", multiple=True, metavar="KEY=VALUE", help="Replace a price, in dollars; see below."
)
def cost(prices: tuple[str, ...]) -> int:
    """Estimate what a month of the repository costs, per storage class. It must be in S3.

    What lies there is listed, which is a request for each 1,000 objects. The requests of a month are those
    that this machine's daemon has counted, in proportion; where none has, the puts of the last month as the
    objects themselves tell them. The passphrase is not needed.

    Prices are the list prices of us-east-1. KEY is `list`, or CLASS.WHAT with one of S3's storage classes in
    small letters, and storage (a GB and month), put, get (1,000), retrieval (a GB) or monitoring (1,000
    objects). Not in the estimate: transfer out of the region, KMS, old versions in a versioned bucket, and
    what is billed for objects that are deleted before a class's least time.
    """
    session = Session.current()
    table = priced(prices)
    now_s = time.time()
    stock, points, recent = _counted(_listed(session), table, now_s - MONTH_S)
    basis = _by_daemon(session) or _by_objects(recent, now_s)
    result = bill(stock, basis.monthly, table)
    if session.options.json:
        output.document(_object(result, basis, points, prices))
    else:
        _show(result, basis, points, quiet=session.options.quiet)
    return 0


def _listed(session: Session) -> Iterable[Stocked]:
    """All objects of the repository."""
    settings = session.settings
    if not settings.url.startswith("s3:"):
        why = "the repository is not in S3, so nobody sends a bill for it"
        raise UsageError("estimate its cost", why, "name an s3:// repository with --repository")
    from smsnapd.store.s3 import open_s3

    store = open_s3(settings)
    try:
        yield from store.stock()
    finally:
        store.close()


def _counted(objects: Iterable[Stocked], prices: Prices, since_s: float) -> tuple[Stock, int, int]:
    """What lies there, how many recovery points it is, and how many objects are younger than `since_s`."""
    from smsnapd.format.names import ManifestName

    stock, points, recent = Stock(prices), set(), 0
    for item in objects:
        stock.add(item.storage_class, item.size)
        recent += item.stored_s >= since_s
        manifest = ManifestName.parse(item.name)
        if manifest is not None:
            points.add((manifest.volume, manifest.snapshot))
    return stock, len(points), recent


def _by_daemon(session: Session) -> _Basis | None:
    """A month as the daemon's count has it; None if there is none."""
    from smsnapd.daemon.totals import read_totals, totals_file

    file = totals_file(session.state_dir, session.own_volume)
    try:
        months = read_totals(file, session.settings.url)
    except (OSError, ValueError) as error:
        raise UsageError(f"read {file}", str(error), "run as root, or as the daemon's user") from error
    return _scaled(months) if months else None


def _scaled(months: Sequence[Month]) -> _Basis:
    """The newest month that says something, in proportion to a whole one."""
    long = [month for month in months if month.until_s - month.since_s >= _DAY_S]
    month = (long or months)[-1]
    # Less than a day is taken for a day's: the first hours store everything, and no later ones do.
    factor = MONTH_S / max(_DAY_S, month.until_s - month.since_s)
    asked = month.requests
    monthly = Monthly(
        asked.put * factor, (asked.get + asked.head) * factor, asked.list * factor, asked.bytes_down * factor
    )
    notes = ("requests are those of this volume's daemon alone",)
    return _Basis("daemon", monthly, month.since_s, month.until_s, notes)


def _by_objects(recent: int, now_s: float) -> _Basis:
    notes = (
        "no daemon has counted requests here: puts are the objects of the last month that are still there,"
        " gets and listings are not known",
    )
    return _Basis("repository", Monthly(puts=recent), now_s - MONTH_S, now_s, notes)


def _notes(result: Bill, basis: _Basis) -> list[str]:
    unpriced = [f"{name} has no price here, and is left out" for name in result.unpriced]
    return [*basis.notes, *unpriced]


def _show(result: Bill, basis: _Basis, points: int, *, quiet: bool) -> None:
    rows = [_row(item) for item in result.classes]
    output.table(_HEADER, rows, frozenset(_HEADER[1:]))
    monthly = basis.monthly
    output.line(
        f"{points:,} recovery points; a month: {monthly.puts:,.0f} PUT, {monthly.gets:,.0f} GET,"
        f" {monthly.lists:,.0f} LIST (${result.listing:.2f}), {size_text(int(monthly.bytes_down))} read"
    )
    output.line(f"about ${result.total:.2f} a month")
    if not quiet:
        for text in (*_notes(result, basis), f"prices: {SOURCE}, {DATE}"):
            output.line(f"smsnap: note: {text}", aside=True)


def _row(item: ClassBill) -> tuple[str, ...]:
    amounts = (item.storage + item.monitoring, item.put, item.get, item.retrieval, item.total)
    return (
        item.storage_class,
        f"{item.objects:,}",
        size_text(item.bytes),
        *(f"${amount:.2f}" for amount in amounts),
    )


def _object(result: Bill, basis: _Basis, points: int, overridden: Sequence[str]) -> dict[str, Any]:
    monthly = basis.monthly
    return {
        "currency": CURRENCY,
        "prices": {"source": SOURCE, "date": DATE, "overridden": list(overridden)},
        "basis": basis.name,
        "since": utc_text(int(basis.since_s * 1e6)),
        "until": utc_text(int(basis.until_s * 1e6)),
        "recovery_points": points,
        "monthly": {
            "put": round(monthly.puts),
            "get": round(monthly.gets),
            "list": round(monthly.lists),
            "bytes_down": round(monthly.bytes_down),
        },
        "classes": [_class_object(item) for item in result.classes],
        "list": round(result.listing, 6),
        "total": round(result.total, 6),
        "notes": _notes(result, basis),
    }


def _class_object(item: ClassBill) -> dict[str, Any]:
    amounts = {
        name: getattr(item, name) for name in ("storage", "put", "get", "retrieval", "monitoring", "total")
    }
    return {
        "class": item.storage_class,
        "objects": item.objects,
        "bytes": item.bytes,
        "billed_bytes": item.billed_bytes,
        **{name: round(amount, 6) for name, amount in amounts.items()},
    }
