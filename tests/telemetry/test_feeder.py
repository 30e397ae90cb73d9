"""What is in the outbox is in the store once, whatever happens on the way; rollups and raw rows agree."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tests.telemetry.conftest import Engine
from tests.telemetry.outbox import MemoryOutbox
from tests.telemetry.rows import HOUR, bill, event, now_us, payload, request, runner_state

from varvel.errors import TelemetryUnavailable
from varvel.telemetry.delivery import Rejects
from varvel.telemetry.feeder import Feeder
from varvel.telemetry.model import RequestRow

pytestmark = pytest.mark.asyncio(loop_scope="module")


def feeder(engine: Engine, outbox: MemoryOutbox, folder: Path, limit: int = 1000) -> Feeder:
    return Feeder(outbox, engine.client, Rejects(folder / "rejected.txt"), up=engine.up, period=0.05, limit=limit)


async def fed(engine: Engine, outbox: MemoryOutbox, folder: Path) -> None:
    """A whole life of a feeder: everything that is in the outbox now."""
    carrying = feeder(engine, outbox, folder)
    carrying.start()
    async with asyncio.timeout(15):
        while outbox.rows:
            await asyncio.sleep(0.01)
    await carrying.stop()


async def count(engine: Engine, table: str, owner: str) -> tuple[int, int]:
    key = {"events": "event_id", "runner_states": "row_id"}.get(table, "request_id")
    sql = f"SELECT count() AS rows, uniqExact({key}) AS ids FROM {table} WHERE owner = {{owner:String}}"
    (row,) = await engine.client.select(sql, {"owner": owner})
    return row["rows"], row["ids"]


async def sums(engine: Engine, owner: str) -> list[dict[str, Any]]:
    return await engine.client.select(
        "SELECT raw.hour AS hour, raw.n AS raw, rolled.n AS rolled, raw.e AS raw_errors, rolled.e AS rolled_errors,"
        " raw.p AS durations, rolled.p AS rolled_p90 FROM"
        " (SELECT intDiv(ended_at, 3600000000) * 3600000000 AS hour, count() AS n, countIf(status = 'error') AS e,"
        " arraySort(groupArray(duration)) AS p FROM requests WHERE owner = {owner:String} GROUP BY hour) AS raw"
        " FULL JOIN (SELECT hour, sum(request_count) AS n, sum(error_count) AS e,"
        " quantilesBFloat16Merge(0.25, 0.5, 0.75, 0.9, 0.95, 0.99)(duration)[4] AS p"
        " FROM requests_hourly WHERE owner = {owner:String} GROUP BY hour) AS rolled ON raw.hour = rolled.hour",
        {"owner": owner},
    )


async def assert_sums_agree(engine: Engine, owner: str, total: int) -> None:
    rows = await sums(engine, owner)
    assert sum(row["raw"] for row in rows) == total
    for row in rows:
        assert (row["raw"], row["raw_errors"]) == (row["rolled"], row["rolled_errors"])
        durations, place = row["durations"], int(0.9 * row["raw"])
        lowest, highest = durations[max(place - 1, 0)], durations[min(place + 1, row["raw"] - 1)]
        assert lowest * 0.992 <= row["rolled_p90"] <= highest
    billed, rolled = [
        (await engine.client.select(sql, {"owner": owner}))[0]["units"]
        for sql in (
            "SELECT sum(billable_units) AS units FROM billing WHERE owner = {owner:String}",
            "SELECT sum(billable_units) AS units FROM billing_hourly WHERE owner = {owner:String}",
        )
    ]
    assert billed == rolled


async def test_after_a_barrier_every_kind_of_row_is_visible(engine: Engine, tmp_path: Path) -> None:
    outbox = MemoryOutbox()
    carrying = feeder(engine, outbox, tmp_path)
    carrying.start()
    one = request(owner="all")
    outbox.add(one, bill(one), payload(one), event("all"), runner_state("all"))
    await carrying.barrier()
    for table in ("requests", "billing", "payloads", "events", "runner_states"):
        assert await count(engine, table, "all") == (1, 1), table
    assert outbox.rows == []
    await carrying.stop()


async def test_rows_are_carried_without_anybody_asking(engine: Engine, tmp_path: Path) -> None:
    outbox = MemoryOutbox()
    carrying = feeder(engine, outbox, tmp_path)
    carrying.start()
    outbox.add(event("unasked"))
    async with asyncio.timeout(5):
        while (await count(engine, "events", "unasked")) != (1, 1):
            await asyncio.sleep(0.02)
    await carrying.stop()


async def test_a_batch_that_arrived_before_its_deletion_was_lost_is_not_there_twice(
    engine: Engine, tmp_path: Path
) -> None:
    outbox = MemoryOutbox()
    rows = [request(owner="twice", status=500 if n % 5 == 0 else 200, duration=n / 10) for n in range(1, 40)]
    outbox.add(*rows, *(bill(row) for row in rows))
    outbox.forgetful = True
    carrying = feeder(engine, outbox, tmp_path)
    carrying.start()
    with pytest.raises(TelemetryUnavailable):
        await carrying.barrier()
    await carrying.stop()
    assert await count(engine, "requests", "twice") == (39, 39)
    outbox.forgetful = False
    outbox.add(request(owner="twice"))
    await fed(engine, outbox, tmp_path)
    assert await count(engine, "requests", "twice") == (40, 40)
    assert await count(engine, "billing", "twice") == (39, 39)
    await assert_sums_agree(engine, "twice", 40)


async def test_a_rollup_that_a_crash_left_short_or_double_is_mended(engine: Engine, tmp_path: Path) -> None:
    outbox = MemoryOutbox()
    at = now_us()
    rows = [request(owner="mended", at=at - 26 * HOUR * (n % 2) - n) for n in range(20)]
    other = request(owner="mended", at=at - 50 * HOUR)
    outbox.add(*rows, *(bill(row) for row in rows), other, bill(other))
    left = [*outbox.rows]
    await fed(engine, outbox, tmp_path)
    await engine.client.execute("TRUNCATE TABLE billing_hourly")
    await engine.client.execute("INSERT INTO requests_hourly SELECT * FROM requests_hourly WHERE owner = 'mended'")
    assert (await sums(engine, "mended"))[0]["raw"] != (await sums(engine, "mended"))[0]["rolled"]
    outbox.rows = left
    await fed(engine, outbox, tmp_path)
    await assert_sums_agree(engine, "mended", 21)


async def test_a_billing_event_is_never_visible_before_its_request(engine: Engine, tmp_path: Path) -> None:
    outbox = MemoryOutbox()
    carrying = feeder(engine, outbox, tmp_path, limit=5)
    carrying.start()
    for _ in range(40):
        one = request(owner="order")
        outbox.add(one, bill(one))
    ahead = (
        "SELECT count() AS n FROM billing WHERE owner = 'order' AND request_id NOT IN (SELECT request_id FROM requests)"
    )
    while outbox.rows:
        assert await engine.client.select(ahead) == [{"n": 0}]
    await carrying.stop()
    assert await count(engine, "billing", "order") == (40, 40)


async def test_a_row_that_the_store_cannot_read_holds_up_no_other_and_is_kept_aside(
    engine: Engine, tmp_path: Path
) -> None:
    outbox = MemoryOutbox()
    bad = request(owner="bad")
    bad.status_code = "not a number"  # type: ignore[assignment]
    good = [request(owner="bad") for _ in range(20)]
    outbox.add(*good[:7], bad, *good[7:])
    await fed(engine, outbox, tmp_path)
    assert await count(engine, "requests", "bad") == (20, 20)
    assert bad.request_id in (tmp_path / "rejected.txt").read_text()
    assert (tmp_path / "rejected.txt").read_text().count("\n") == 1


async def test_a_barrier_does_not_wait_for_a_store_that_is_away(engine: Engine, tmp_path: Path) -> None:
    outbox = MemoryOutbox()
    away = asyncio.Event()
    carrying = Feeder(outbox, engine.client, Rejects(tmp_path / "r"), up=away, period=0.01, limit=10)
    carrying.start()
    outbox.add(request(owner="away"))
    with pytest.raises(TelemetryUnavailable):
        await carrying.barrier()
    away.set()
    await carrying.barrier()
    away.clear()
    assert await count(engine, "requests", "away") == (1, 1)
    await carrying.stop()


async def test_a_barrier_with_nothing_to_carry_returns_at_once(engine: Engine, tmp_path: Path) -> None:
    carrying = feeder(engine, MemoryOutbox(), tmp_path)
    carrying.start()
    async with asyncio.timeout(0.04):
        await carrying.barrier()
    await carrying.stop()


async def test_percentiles_of_the_rollup_are_rounded_down_by_less_than_one_percent_over_six_orders_of_size(
    engine: Engine, tmp_path: Path
) -> None:
    outbox = MemoryOutbox()
    at = now_us()
    rows: list[RequestRow] = [request(owner="wide", at=at, duration=0.0001 * 1.01**n) for n in range(1400)]
    outbox.add(*rows)
    await fed(engine, outbox, tmp_path)
    await assert_sums_agree(engine, "wide", 1400)
