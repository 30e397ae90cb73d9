"""What a machine-second cost when: the machine table's prices, with every change since the first start.

A change of `varvel.toml` holds from the next whole minute after the server was started with it, so that usage from
before keeps its price. What was used before the first start has the first price.
"""

from __future__ import annotations

import asyncio
import json
from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from varvel.billing.rules import MachineType
from varvel.state.database import Database

MINUTE = 60_000_000

_ALL = """
SELECT machine_type, since, price_second, surge, surge_hours, percent_discount FROM machine_prices ORDER BY since
"""
_ADD = "INSERT OR REPLACE INTO machine_prices VALUES (?, ?, ?, ?, ?, ?)"


@dataclass(frozen=True, slots=True)
class Pricing:
    """What a second of one machine type costs in USD, in exact decimals."""

    price_second: Decimal
    surge: Decimal = Decimal(1)
    surge_hours: tuple[tuple[int, int], ...] = ()
    percent_discount: Decimal | None = None

    @classmethod
    def of(cls, machine: MachineType) -> Pricing:
        """The pricing of a type in the machine table."""
        discount = machine.percent_discount
        return cls(
            _decimal(machine.price_second),
            _decimal(machine.surge),
            machine.surge_hours,
            None if not discount else _decimal(discount),
        )

    def surges(self, minute: int) -> bool:
        """Whether surge pricing holds in this minute of the UTC day."""
        if self.surge == 1:
            return False
        return not self.surge_hours or any(begin <= minute < end for begin, end in self.surge_hours)

    def unit_price(self, surge: bool) -> Decimal:
        """USD a second before discounts."""
        return self.price_second * self.surge if surge else self.price_second


FREE = Pricing(Decimal(0))


def _decimal(value: float) -> Decimal:
    # The shortest form of the number, which is what its author wrote.
    return Decimal(repr(value)).normalize()


class PriceBook:
    """Prices of all machine types at all times. `machines` is the machine table of this start of the server."""

    def __init__(self, database: Database, machines: Iterable[MachineType], clock: Callable[[], float]) -> None:
        self._database = database
        self._machines = machines
        self._clock = clock
        self._started = False
        self._lock = asyncio.Lock()
        self._book: dict[str, tuple[list[int], list[Pricing]]] = {}

    async def start(self) -> None:
        """Read the history and add what the machine table has changed; once, however often it is called."""
        async with self._lock:
            if not self._started:
                await self._load()
                self._started = True

    async def _load(self) -> None:
        self._fill(await self._database.read(lambda db: db.execute(_ALL).fetchall()))
        since = -(-round(self._clock() * 1_000_000) // MINUTE) * MINUTE
        changes = []
        for machine in self._machines:
            pricing = Pricing.of(machine)
            if machine.name not in self._book:
                changes.append(_row(machine.name, 0, pricing))
            elif self._book[machine.name][1][-1] != pricing:
                changes.append(_row(machine.name, since, pricing))
        if changes:
            await self._database.write(lambda db: db.executemany(_ADD, changes))
            self._fill(await self._database.read(lambda db: db.execute(_ALL).fetchall()))

    def _fill(self, rows: list[Any]) -> None:
        self._book = {}
        for name, since, price, surge, hours, discount in rows:
            times, prices = self._book.setdefault(name, ([], []))
            times.append(since)
            spans = tuple((begin, end) for begin, end in json.loads(hours))
            prices.append(
                Pricing(Decimal(price), Decimal(surge), spans, None if discount is None else Decimal(discount))
            )

    def at(self, machine_type: str, micros: int) -> Pricing:
        """The pricing of a type at a time; an unknown type is free."""
        times, prices = self._book.get(machine_type, ([], []))
        return prices[max(bisect_right(times, micros) - 1, 0)] if times else FREE

    def changes(self) -> list[int]:
        """The times (microseconds) at which any price changed, with 0 first."""
        return sorted({0, *(since for times, _ in self._book.values() for since in times)})

    def surge_edges(self) -> list[int]:
        """The minutes of the UTC day at which surge pricing of any type begins or ends, with 0 first."""
        every = (pricing for _, prices in self._book.values() for pricing in prices)
        edges = {minute for pricing in every for span in pricing.surge_hours for minute in span}
        return sorted({0, *(edges - {1440})})


def _row(name: str, since: int, pricing: Pricing) -> tuple[str, int, str, str, str, str | None]:
    discount = None if pricing.percent_discount is None else f"{pricing.percent_discount:f}"
    hours = json.dumps([list(span) for span in pricing.surge_hours])
    return name, since, f"{pricing.price_second:f}", f"{pricing.surge:f}", hours, discount
