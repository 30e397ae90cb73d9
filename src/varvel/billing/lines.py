"""Lines of a bill: machine-seconds of an app at one price. Plain rules; money is exact decimals throughout."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from varvel.billing.prices import PriceBook

CURRENCY = "USD"
_MILLION = Decimal(1_000_000)


@dataclass(frozen=True, slots=True, order=True)
class Item:
    """What distinguishes two lines of one stretch of time."""

    app: str
    """Name without its owner."""
    environment: str
    machine_type: str
    is_surge: bool
    unit_price: Decimal
    """USD a second before discounts."""
    percent_discount: Decimal
    """0 for none."""


@dataclass(frozen=True, slots=True)
class Line:
    """An item and how many machine-seconds of it were used."""

    item: Item
    quantity: Decimal

    @property
    def subtotal(self) -> Decimal:
        """Cost before discounts."""
        return self.quantity * self.item.unit_price

    @property
    def discount(self) -> Decimal:
        """What the discount takes off."""
        return self.subtotal * self.item.percent_discount / 100

    @property
    def total(self) -> Decimal:
        """What is charged."""
        return self.subtotal - self.discount


def lines(rows: Iterable[Mapping[str, Any]], book: PriceBook) -> dict[int, list[Line]]:
    """Lines by bucket, sorted, from summed runner states.

    A row has `bucket`, `app` (`owner/name`), `environment`, `machine_type`, `changed` (when its prices began to
    hold, microseconds), `minute` (of the UTC day, as far as surge matters) and `machine_micros`.
    """
    sums: dict[int, dict[Item, int]] = defaultdict(lambda: defaultdict(int))
    for row in rows:
        pricing = book.at(row["machine_type"], row["changed"])
        surge = pricing.surges(row["minute"])
        item = Item(
            row["app"].partition("/")[2],
            row["environment"],
            row["machine_type"],
            surge,
            pricing.unit_price(surge),
            pricing.percent_discount or Decimal(0),
        )
        sums[row["bucket"]][item] += int(row["machine_micros"])
    return {
        bucket: [Line(item, Decimal(micros) / _MILLION) for item, micros in sorted(items.items())]
        for bucket, items in sums.items()
    }


def total(found: Iterable[Line]) -> Decimal:
    """What some lines cost together."""
    return sum((line.total for line in found), Decimal(0))
