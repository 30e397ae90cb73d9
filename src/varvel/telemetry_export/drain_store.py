"""Log drains in the state database."""

from __future__ import annotations

import base64
import sqlite3
from dataclasses import dataclass
from typing import Literal

from cryptography.fernet import Fernet

from varvel.errors import Conflict
from varvel.state.database import Database

Kind = Literal["http", "datadog"]

_COLUMNS = (
    "drain_id, owner, kind, url, secret, batch_size, created_at, active, failures, last_error, last_sent_at, position"
)
_ADD = f"INSERT INTO log_drains ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608
_ALL = f"SELECT {_COLUMNS} FROM log_drains ORDER BY created_at"  # noqa: S608
_SENT = "UPDATE log_drains SET position = ?, last_sent_at = ?, failures = 0, last_error = NULL WHERE drain_id = ?"
_FAILED = "UPDATE log_drains SET failures = ?, last_error = ?, active = ? WHERE drain_id = ?"
_ACTIVATE = "UPDATE log_drains SET active = ?, failures = 0, last_error = NULL WHERE drain_id = ?"
_DELETE = "DELETE FROM log_drains WHERE drain_id = ?"


@dataclass(slots=True, kw_only=True)
class Drain:
    """One drain. `position` is the `ts` of the last line that its receiver took."""

    drain_id: str
    owner: str
    kind: Kind
    url: str
    secret: str
    batch_size: int
    created_at: float
    active: bool = True
    failures: int = 0
    last_error: str | None = None
    last_sent_at: float | None = None
    position: int


class DrainStore:
    """Reads and writes drains; secrets are encrypted with `key` (32 bytes) on their way."""

    def __init__(self, database: Database, key: bytes) -> None:
        self._database = database
        self._box = Fernet(base64.urlsafe_b64encode(key))

    async def all(self) -> list[Drain]:
        """Every drain of every owner, oldest first."""
        rows = await self._database.read(lambda db: db.execute(_ALL).fetchall())
        return [self._drain(tuple(row)) for row in rows]

    async def add(self, drain: Drain) -> None:
        """Raises `Conflict` when the owner has an active drain."""
        values = (
            drain.drain_id,
            drain.owner,
            drain.kind,
            drain.url,
            self._box.encrypt(drain.secret.encode()),
            drain.batch_size,
            drain.created_at,
            int(drain.active),
            drain.failures,
            drain.last_error,
            drain.last_sent_at,
            drain.position,
        )
        await self._database.write(lambda db: _only_one(db, _ADD, values))

    async def sent(self, drain: Drain) -> None:
        """Keep how far the receiver is."""
        values = (drain.position, drain.last_sent_at, drain.drain_id)
        await self._database.write(lambda db: db.execute(_SENT, values).rowcount)

    async def failed(self, drain: Drain) -> None:
        """Keep a failure, and whether the drain is still on."""
        values = (drain.failures, drain.last_error, int(drain.active), drain.drain_id)
        await self._database.write(lambda db: db.execute(_FAILED, values).rowcount)

    async def activate(self, drain_id: str, active: bool) -> None:
        """Switch a drain on or off. Raises `Conflict` when another one of the owner is on."""
        await self._database.write(lambda db: _only_one(db, _ACTIVATE, (int(active), drain_id)))

    async def delete(self, drain_id: str) -> None:
        """Forget a drain."""
        await self._database.write(lambda db: db.execute(_DELETE, (drain_id,)).rowcount)

    def _drain(self, row: tuple[object, ...]) -> Drain:
        values = dict(zip(_COLUMNS.split(", "), row, strict=True))
        secret = self._box.decrypt(bytes(values["secret"])).decode()  # type: ignore[call-overload]
        return Drain(**{**values, "secret": secret, "active": bool(values["active"])})  # type: ignore[arg-type]


def _only_one(db: sqlite3.Connection, statement: str, values: tuple[object, ...]) -> None:
    try:
        db.execute(statement, values)
    except sqlite3.IntegrityError as problem:
        raise Conflict("There is an active log drain already; one account has one at most") from problem
