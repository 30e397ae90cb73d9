"""The ledger of what ended outside the queue: direct calls, and what happened to apps and runners."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable
from itertools import chain

from varvel.state.database import Database
from varvel.state.outbox import Outbox, Row
from varvel.telemetry.model import BillingRow, EventRow, PayloadRow, RequestRow, RunnerRow


class Ledger:
    """Writes records durably, on their way to telemetry. Thousands a second share one sync."""

    def __init__(self, database: Database, outbox: Outbox) -> None:
        self._database = database
        self._outbox = outbox

    def record_call(
        self, request: RequestRow, payload: PayloadRow | None = None, billing: BillingRow | None = None
    ) -> Awaitable[None]:
        """Record a finished direct call. Awaiting it waits for the sync; it is written even if nobody does.

        Raises `StorageFull` when awaited and the disk is full.
        """
        rows: list[Row] = [request]
        if payload is not None:
            rows.append(payload)
        if billing is not None:
            rows.append(billing)
        return self._database.batch(self._write, rows)

    def record(self, *rows: EventRow | RunnerRow) -> None:
        """Record events or runner intervals: durable soon, never waited for. An error is logged."""
        written: list[Row] = [*rows]
        self._database.batch_soon(self._write, written)

    def _write(self, connection: sqlite3.Connection, groups: list[list[Row]]) -> None:
        self._outbox.put(chain.from_iterable(groups))
