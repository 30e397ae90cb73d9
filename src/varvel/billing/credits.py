"""Credit that owners were given, in the state database. What it was spent on is not known here."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from varvel import ids
from varvel.errors import InvalidRequest
from varvel.state.database import Database

_ADD = "INSERT INTO credits (credit_id, owner, amount, granted_at, note) VALUES (?, ?, ?, ?, ?)"
_OF = "SELECT amount, granted_at FROM credits WHERE owner = ? ORDER BY granted_at"


@dataclass(frozen=True, slots=True)
class Granted:
    """All credit of an owner, in USD, and when the first of it was given (microseconds; None: never any)."""

    amount: Decimal
    since: int | None


class Credits:
    """What was granted to whom."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def grant(self, owner: str, amount: str, now: float, note: str = "") -> str:
        """Give credit, in USD as a decimal text; negative takes it back. Returns its id. Raises `InvalidRequest`."""
        try:
            exact = Decimal(amount)
        except InvalidOperation as problem:
            raise InvalidRequest(f"amount: {amount[:40]!r} is no decimal number") from problem
        if not exact.is_finite() or abs(exact) > Decimal(10) ** 12:
            raise InvalidRequest(f"amount: {amount[:40]!r} is no amount of money")
        row = (ids.uuid7(), owner, f"{exact:f}", round(now * 1_000_000), note)
        await self._database.write(lambda db: db.execute(_ADD, row).rowcount)
        return row[0]

    async def granted(self, owner: str) -> Granted:
        """All that an owner was given."""
        rows = await self._database.read(lambda db: db.execute(_OF, (owner,)).fetchall())
        amount = sum((Decimal(row[0]) for row in rows), Decimal(0))
        return Granted(amount, rows[0][1] if rows else None)
