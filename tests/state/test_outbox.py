"""The outbox and the ledger that feeds it."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from varvel.state.database import Database
from varvel.state.ledger import Ledger
from varvel.state.outbox import Outbox
from varvel.telemetry.model import BillingRow, EventRow, RequestRow


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = Database.open(tmp_path / "state.db")
    yield opened
    await opened.close()


def event(name: str) -> EventRow:
    return EventRow(event_id=name, owner="me", app="me/echo", category="x", created_at=1, payload="{}")


def request(request_id: str) -> RequestRow:
    return RequestRow(
        request_id=request_id,
        owner="me",
        app="me/echo",
        endpoint_id="me/echo",
        kind="sync",
        sent_at=1,
        started_at=2,
        ended_at=3,
        status_code=200,
        duration=0.1,
        prepare_duration=0.1,
    )


def billing(request_id: str) -> BillingRow:
    return BillingRow(
        request_id=request_id,
        owner="me",
        app="me/echo",
        endpoint_id="me/echo",
        ended_at=3,
        recorded_at=3,
        billable_units=1,
        billable_duration=1,
        machine_type="S",
        unit="seconds",
    )


async def ids(outbox: Outbox, kind: str, field: str) -> list[str]:
    batches = await outbox.peek(kind, 1_000_000)
    lines = [line for batch in batches for line in batch.body.splitlines()]
    assert sum(batch.rows for batch in batches) == len(lines)
    return [json.loads(line)[field] for line in lines]


async def test_a_recorded_call_waits_in_the_outbox_once_with_its_bill(database: Database) -> None:
    outbox = Outbox(database)
    ledger = Ledger(database, outbox)
    names = [f"r{n}" for n in range(200)]
    await asyncio.gather(*[ledger.record_call(request(name), None, billing(name)) for name in names])
    assert await ids(outbox, "requests", "request_id") == names
    assert await ids(outbox, "billing", "request_id") == names
    assert len(await outbox.peek("requests", 1_000_000)) < 50


async def test_events_are_durable_without_waiting(tmp_path: Path) -> None:
    database = Database.open(tmp_path / "state.db")
    outbox = Outbox(database)
    added = asyncio.Event()
    outbox.on_added(added.set)
    Ledger(database, outbox).record(event("a"), event("b"))
    await asyncio.wait_for(added.wait(), 5)
    await database.close()
    database = Database.open(tmp_path / "state.db")
    assert await ids(Outbox(database), "events", "event_id") == ["a", "b"]
    await database.close()


async def test_delivered_batches_are_forgotten_and_numbers_never_come_again(database: Database) -> None:
    outbox = Outbox(database)
    ledger = Ledger(database, outbox)
    await ledger.record_call(request("a"))
    first = outbox.last_seq()
    await outbox.delete([batch.seq for batch in await outbox.peek("requests", 10)])
    assert await outbox.peek("requests", 10) == []
    assert Outbox(database).last_seq() == first
    await ledger.record_call(request("b"))
    assert outbox.last_seq() > first


async def test_peek_keeps_to_its_limit_but_always_gives_the_oldest_batch(database: Database) -> None:
    outbox = Outbox(database)
    ledger = Ledger(database, outbox)
    for name in ("a", "b", "c"):
        await ledger.record_call(request(name))
    assert [batch.rows for batch in await outbox.peek("requests", 2)] == [1, 1]
    assert [batch.rows for batch in await outbox.peek("requests", 0)] == [1]


async def test_rows_of_a_failed_write_are_not_sent(database: Database) -> None:
    outbox = Outbox(database)

    def write(db: sqlite3.Connection, items: list[str]) -> None:
        if "bad" in items:
            raise ValueError
        outbox.put([event(item) for item in items])

    waits = [database.batch(write, name) for name in ("a", "bad", "b")]
    results = await asyncio.gather(*waits, return_exceptions=True)
    assert isinstance(results[1], ValueError)
    assert await ids(outbox, "events", "event_id") == ["a", "b"]
