"""Credit that owners were given and what they have used of it, in the state database. Amounts are exact decimals.

What was used is settled once a month is over: then it no longer depends on rows that retention drops.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from varvel import ids
from varvel.billing.invoices import SETTLE, Month
from varvel.errors import InvalidRequest
from varvel.state.database import Database

PLACES = 9
"""Decimal places of an amount: billionths of a dollar."""
MOST = Decimal(10) ** 12
_ADD = "INSERT INTO credits (credit_id, owner, amount, granted_at, note) VALUES (?, ?, ?, ?, ?)"
_OF = "SELECT credit_id, amount, granted_at, note FROM credits WHERE owner = ? ORDER BY granted_at, credit_id"
_OWNERS = "SELECT DISTINCT owner FROM credits"
_SPENT = "SELECT amount, until FROM credit_spent WHERE owner = ?"
_SETTLE = """
INSERT INTO credit_spent (owner, until, amount) VALUES (:owner, :until, :amount)
ON CONFLICT (owner) DO UPDATE SET until = :until, amount = :amount WHERE until = :before
"""

Cost = Callable[[str, int, int], Awaitable[Decimal]]
"""(owner, start, end in microseconds) -> what the owner's machines cost in that time, in USD."""


@dataclass(frozen=True, slots=True)
class Grant:
    """Credit that was given once, in USD; `granted_at` in microseconds."""

    credit_id: str
    amount: Decimal
    granted_at: int
    note: str


def exact(amount: str) -> Decimal:
    """An amount of money that is not nothing, of nine decimal places at most. Raises `InvalidRequest`."""
    try:
        value = Decimal(amount)
    except InvalidOperation as problem:
        raise InvalidRequest(f"amount: {amount[:40]!r} is no decimal number") from problem
    if not value.is_finite() or not 0 < abs(value) <= MOST:
        raise InvalidRequest(f"amount: {amount[:40]!r} is no amount of money")
    if value != round(value, PLACES):
        raise InvalidRequest(f"amount: {amount[:40]!r} has more than {PLACES} decimal places")
    return value


class Credits:
    """What was granted to whom, and what is left. `cost` tells what machines cost."""

    def __init__(self, database: Database, cost: Cost) -> None:
        self._database = database
        self._cost = cost

    async def grant(self, owner: str, amount: str, now: float, note: str = "") -> Grant:
        """Give credit, in USD as a decimal text; negative takes it back. Raises `InvalidRequest`."""
        grant = Grant(ids.uuid7(), exact(amount), round(now * 1_000_000), note)
        row = (grant.credit_id, owner, f"{grant.amount:f}", grant.granted_at, note)
        await self._database.write(lambda db: db.execute(_ADD, row).rowcount)
        return grant

    async def grants(self, owner: str) -> list[Grant]:
        """All that an owner was given, oldest first."""
        rows = await self._database.read(lambda db: db.execute(_OF, (owner,)).fetchall())
        return [Grant(row[0], Decimal(row[1]), row[2], row[3]) for row in rows]

    async def balance(self, owner: str, now: float) -> Decimal:
        """What is left: all credit less what was used since the first of it; never less than nothing."""
        grants = await self.grants(owner)
        if not grants:
            return Decimal(0)
        spent, until = await self._settled(owner, grants[0].granted_at, now)
        spent += await self._cost(owner, until, round(now * 1_000_000))
        return max(sum((grant.amount for grant in grants), Decimal(0)) - spent, Decimal(0))

    async def settle(self, now: float) -> None:
        """Settle the months that are over: call it now and then, before retention drops their rows."""
        owners = await self._database.read(lambda db: db.execute(_OWNERS).fetchall())
        for (owner,) in owners:
            grants = await self.grants(owner)
            await self._settled(owner, grants[0].granted_at, now)

    async def _settled(self, owner: str, since: int, now: float) -> tuple[Decimal, int]:
        """What was used until when, up to the last month that is over. The rest is still to be counted."""
        row = await self._database.read(lambda db: db.execute(_SPENT, (owner,)).fetchone())
        spent, until = (Decimal(row[0]), int(row[1])) if row else (Decimal(0), since)
        over = Month.of(now - SETTLE).start * 1_000_000
        if over <= until:
            return spent, until
        before, spent = until, spent + await self._cost(owner, until, over)
        values = {"owner": owner, "before": before, "until": over, "amount": f"{spent:f}"}
        await self._database.write(lambda db: db.execute(_SETTLE, values).rowcount)
        return spent, over
