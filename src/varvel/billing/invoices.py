"""Invoices: the closed months of an owner. Once a month is closed, its lines never change."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal

from varvel.billing.lines import Item, Line, total
from varvel.errors import InvalidRequest
from varvel.state.database import Database

SETTLE = 3600.0
"""Seconds after a month's end until it is closed, so that rows still on their way to the store are in it."""
_MONTH = re.compile(r"(\d{4})-(0[1-9]|1[0-2])")

_GET = "SELECT invoice_id, issued_at, lines FROM invoices WHERE owner = ? AND month = ?"
_ADD = """
INSERT INTO invoices (owner, month, invoice_id, issued_at, total, lines) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (owner, month) DO NOTHING
"""

DailyLines = Callable[[str, int, int], Awaitable[Mapping[int, Sequence[Line]]]]
"""(owner, start, end in seconds) -> lines by the second at which their UTC day begins."""


@dataclass(frozen=True, slots=True)
class Month:
    """A calendar month in UTC."""

    year: int
    month: int

    @classmethod
    def parse(cls, text: str, name: str) -> Month:
        """`2025-02`. Raises `InvalidRequest` that names the parameter."""
        found = _MONTH.fullmatch(text)
        if found is None or not 1970 <= int(found[1]) <= 2199:
            raise InvalidRequest(f"{name}: {text[:20]!r} is not a month like 2025-02")
        return cls(int(found[1]), int(found[2]))

    @classmethod
    def of(cls, seconds: float) -> Month:
        """The month of a time."""
        at = datetime.fromtimestamp(seconds, UTC)
        return cls(at.year, at.month)

    @property
    def start(self) -> int:
        """Its first second."""
        return int(datetime(self.year, self.month, 1, tzinfo=UTC).timestamp())

    @property
    def end(self) -> int:
        """The first second after it."""
        return self.next.start

    @property
    def next(self) -> Month:
        return Month(self.year + self.month // 12, self.month % 12 + 1)

    @property
    def previous(self) -> Month:
        return Month(self.year - (self.month == 1), (self.month - 2) % 12 + 1)

    def __str__(self) -> str:
        return f"{self.year:04}-{self.month:02}"


@dataclass(frozen=True, slots=True)
class Invoice:
    """A closed month. `lines` by the second at which their UTC day begins."""

    invoice_id: str
    issued_at: float
    lines: dict[int, list[Line]]


class Invoices:
    """Closes months and remembers them."""

    def __init__(self, database: Database, daily: DailyLines) -> None:
        self._database = database
        self._daily = daily

    async def get(self, owner: str, charged: Month, now: float) -> Invoice:
        """The invoice of the month in which charges were made; closes it when nobody has yet.

        Raises `InvalidRequest` while the month goes on.
        """
        if now < charged.end + SETTLE:
            raise InvalidRequest(f"The month {charged} is not invoiced yet; source=estimate has it up to now")
        found = await self._stored(owner, charged)
        if found is None:
            await self._close(owner, charged)
            found = await self._stored(owner, charged)
        assert found is not None
        return found

    async def close_months(self, owners: Sequence[str], now: float) -> None:
        """Close the last month of each owner if it can be: call it at start and daily, before retention drops rows."""
        month = Month.of(now).previous
        if now >= month.end + SETTLE:
            for owner in owners:
                if await self._stored(owner, month) is None:
                    await self._close(owner, month)

    async def _stored(self, owner: str, month: Month) -> Invoice | None:
        row = await self._database.read(lambda db: db.execute(_GET, (owner, str(month))).fetchone())
        if row is None:
            return None
        days = {int(day): [_line(fields) for fields in found] for day, found in json.loads(row[2]).items()}
        return Invoice(row[0], row[1] / 1_000_000, days)

    async def _close(self, owner: str, month: Month) -> None:
        days = await self._daily(owner, month.start, month.end)
        amount = sum((total(found) for found in days.values()), Decimal(0))
        text = json.dumps({str(day): [_fields(line) for line in found] for day, found in sorted(days.items())})
        # An invoice is issued when the next month begins, whenever that is noticed.
        row = (owner, str(month), f"{owner}-{month}", month.end * 1_000_000, f"{amount:f}", text)
        await self._database.write(lambda db: db.execute(_ADD, row).rowcount)


def _fields(line: Line) -> list[str | bool]:
    item = line.item
    numbers = (item.unit_price, item.percent_discount, line.quantity)
    return [item.app, item.environment, item.machine_type, item.is_surge, *(f"{number:f}" for number in numbers)]


def _line(fields: Sequence[str | bool]) -> Line:
    app, environment, machine_type, surge, price, discount, quantity = fields
    item = Item(
        str(app), str(environment), str(machine_type), bool(surge), Decimal(str(price)), Decimal(str(discount))
    )  # fmt: skip
    return Line(item, Decimal(str(quantity)))
