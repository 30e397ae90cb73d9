"""Runner intervals on their way to telemetry, and in state.db what those that go on have come to so far."""

from __future__ import annotations

import asyncio
import sqlite3
from itertools import chain
from typing import NamedTuple

import msgspec
import structlog

from varvel.state.database import Database
from varvel.state.outbox import Outbox
from varvel.telemetry.model import RunnerRow

OWED = 100_000
"""Rows that are held while the disk is full."""
_ALL = "SELECT name, rows FROM runner_intervals"
_KEEP = "INSERT OR REPLACE INTO runner_intervals (name, rows) VALUES (?, ?)"
_FORGET = "DELETE FROM runner_intervals WHERE name = ?"
_log = structlog.get_logger("varvel.runners")


class _Save(NamedTuple):
    done: list[RunnerRow]
    so_far: dict[str, list[RunnerRow]]


_NOTHING = _Save([], {})


class KeptSeconds:
    """`varvel.runners.intervals.RunnerSeconds` in the state database. `recover` before anything is saved."""

    def __init__(self, database: Database, outbox: Outbox) -> None:
        self._database = database
        self._outbox = outbox
        self._owed = _NOTHING
        """What found no room on the disk: it goes with whatever is saved next."""

    async def recover(self) -> int:
        """Hand on what a killed server had kept of intervals that went on; how many rows."""
        kept = await self._database.read(lambda db: dict(db.execute(_ALL).fetchall()))
        rows = [row for body in kept.values() for row in _decode(body)]
        self._owed = _Save(rows, {name: [] for name in kept})
        self.retry()
        return len(rows)

    def save(self, name: str, done: list[RunnerRow], so_far: list[RunnerRow]) -> None:
        """Keep rows that are done, and `so_far` in place of what was kept so far under this name; both or neither."""
        owed, self._owed = self._owed, _NOTHING
        self._put(_Save([*owed.done, *done], {**owed.so_far, name: so_far}))

    def retry(self) -> None:
        """Try again to keep the rows that found no room."""
        if self._owed.done:
            owed, self._owed = self._owed, _NOTHING
            self._put(owed)

    def _put(self, save: _Save) -> None:
        self._database.batch(self._write, save).add_done_callback(lambda future: self._settle(save, future))

    def _settle(self, save: _Save, future: asyncio.Future[None]) -> None:
        if future.cancelled() or (problem := future.exception()) is None or not save.done:
            return
        room = OWED - len(self._owed.done)
        if len(save.done) > room:
            _log.error("runner seconds are lost", rows=len(save.done) - room, problem=str(problem))
        # Rows that are done have been in `so_far` of their names: that must go when they come.
        forget: dict[str, list[RunnerRow]] = {name: [] for name in save.so_far}
        self._owed = _Save([*self._owed.done, *save.done[:room]], {**forget, **self._owed.so_far})

    def _write(self, connection: sqlite3.Connection, saves: list[_Save]) -> None:
        kept: dict[str, list[RunnerRow]] = {}
        for save in saves:
            kept |= save.so_far
        connection.executemany(_KEEP, [(name, _encode(rows)) for name, rows in kept.items() if rows])
        connection.executemany(_FORGET, [(name,) for name, rows in kept.items() if not rows])
        self._outbox.put(chain.from_iterable(save.done for save in saves))


def _encode(rows: list[RunnerRow]) -> bytes:
    return msgspec.json.encode(rows)


def _decode(body: bytes) -> list[RunnerRow]:
    return msgspec.json.decode(body, type=list[RunnerRow])
