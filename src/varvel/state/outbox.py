"""Records on their way to the telemetry store: written with what they record, delivered later, at least once."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import msgspec

from varvel.state.database import Database
from varvel.telemetry.model import BillingRow, EventRow, PayloadRow, RequestRow, RunnerRow

Row = RequestRow | PayloadRow | BillingRow | EventRow | RunnerRow

KINDS: dict[type[Row], str] = {
    RequestRow: "requests",
    PayloadRow: "payloads",
    BillingRow: "billing",
    EventRow: "events",
    RunnerRow: "runner_states",
}


_NONE = (0, b"")
_INSERT = {
    kinds: f"INSERT INTO outbox (kind, rows, body) VALUES {', '.join(['(?, ?, ?)'] * kinds)}"  # noqa: S608
    for kinds in range(1, len(KINDS) + 1)
}
"""One statement for all kinds of a commit."""


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """One batch: `rows` JSON lines of one kind, each ended by a newline, as one commit wrote them."""

    seq: int
    kind: str
    rows: int
    body: bytes


class Outbox:
    """Gathers the rows of each group commit into one database row a kind."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._encoder = msgspec.json.Encoder()
        self._gathered: dict[str, tuple[int, bytes]] = {}
        self._written = 0
        self._last = database.read_now(_last_seq)
        self._callbacks: list[Callable[[], None]] = []
        database.join(self)

    def put(self, rows: Iterable[Row]) -> None:
        """Add rows to the transaction that is open. Only from within a write, as its last step; many at once cost less.

        Adds all or nothing: a row that cannot be encoded raises before anything is taken.
        """
        kinds: dict[str, list[Row]] = {}
        for row in rows:
            kind = KINDS[type(row)]
            if kind in kinds:
                kinds[kind].append(row)
            else:
                kinds[kind] = [row]
        encode = self._encoder.encode_lines
        encoded = [(kind, len(items), encode(items)) for kind, items in kinds.items()]
        gathered = self._gathered
        for kind, count, body in encoded:
            before, first = gathered.get(kind, _NONE)
            gathered[kind] = (before + count, first + body if first else body)

    def on_added(self, callback: Callable[[], None]) -> None:
        """Have `callback` called on the event loop after each commit that added rows."""
        self._callbacks.append(callback)

    def last_seq(self) -> int:
        """`seq` of the last batch that was committed, by this process or an earlier one; 0 if there was none."""
        return self._last

    async def peek(self, kind: str, limit_rows: int) -> list[OutboxRow]:
        """The oldest batches of a kind, at least one if there is any, then as many as stay within `limit_rows`."""

        def work(connection: sqlite3.Connection) -> list[OutboxRow]:
            batches: list[OutboxRow] = []
            total = 0
            cursor = connection.execute("SELECT seq, kind, rows, body FROM outbox WHERE kind = ? ORDER BY seq", (kind,))
            for row in cursor:
                total += row[2]
                if batches and total > limit_rows:
                    break
                batches.append(OutboxRow(*row))
            cursor.close()
            return batches

        return await self._database.read(work)

    async def delete(self, seqs: Sequence[int]) -> None:
        """Forget delivered batches."""
        await self._database.batch(_delete, list(seqs))

    async def waiting(self) -> dict[str, int]:
        """How many rows of each kind wait to be delivered."""
        query = "SELECT kind, sum(rows) FROM outbox GROUP BY kind"
        return await self._database.read(lambda connection: dict(connection.execute(query).fetchall()))

    # Part of each transaction, on the writer thread

    def before_commit(self, connection: sqlite3.Connection) -> None:
        if not self._gathered:
            return
        values = [value for kind, (count, body) in self._gathered.items() for value in (kind, count, body)]
        cursor = connection.execute(_INSERT[len(self._gathered)], values)
        self._written = cursor.lastrowid or 0

    def rolled_back(self) -> None:
        self._gathered = {}

    def committed(self) -> Callable[[], None] | None:
        if not self._gathered:
            return None
        self._gathered = {}
        self._last = self._written
        return self._tell

    def _tell(self) -> None:
        for callback in self._callbacks:
            callback()


def _last_seq(connection: sqlite3.Connection) -> int:
    row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'outbox'").fetchone()
    return int(row[0]) if row else 0


def _delete(connection: sqlite3.Connection, groups: list[list[int]]) -> None:
    connection.execute(
        "DELETE FROM outbox WHERE seq IN (SELECT value FROM json_each(?))",
        (msgspec.json.encode([seq for group in groups for seq in group]),),
    )
