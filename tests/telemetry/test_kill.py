"""SIGKILL of the store in the middle of load: nothing recorded or logged is lost, nothing is there twice."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from pathlib import Path

from tests.telemetry.rows import bill, payload, request

from varvel.errors import TelemetryUnavailable
from varvel.settings import Settings
from varvel.state.database import Database
from varvel.state.ledger import Ledger
from varvel.state.outbox import Outbox
from varvel.telemetry.service import Telemetry

KILLS = int(os.environ.get("VARVEL_KILLS", "4"))


class Load:
    """Records requests and logs lines until told to stop, and knows what was acknowledged."""

    def __init__(self, ledger: Ledger, telemetry: Telemetry) -> None:
        self.ids: list[str] = []
        self.lines: list[int] = []
        self.refused = 0
        self._ledger = ledger
        self._telemetry = telemetry
        self.stop = False

    async def run(self) -> None:
        while not self.stop:
            rows = [request(owner="kill", status=500 if len(self.ids) % 7 == 0 else 200) for _ in range(20)]
            await asyncio.gather(*(self._ledger.record_call(row, payload(row), bill(row)) for row in rows))
            self.ids += [row.request_id for row in rows]
            for row in rows:
                self.lines.append(
                    self._telemetry.take(
                        app="kill/app", revision="", job_id="job", level="info", message="x" * 200,
                        request_id=row.request_id,
                    )
                )  # fmt: skip
            await asyncio.sleep(0.01)

    async def read(self) -> None:
        while not self.stop:
            try:
                await self._telemetry.barrier()
                await self._telemetry.select("SELECT count() AS n FROM requests")
            except TelemetryUnavailable:
                self.refused += 1
            await asyncio.sleep(0.02)


async def test_kills_of_the_store_lose_nothing_and_double_nothing() -> None:
    with tempfile.TemporaryDirectory(prefix="vt-") as name:
        data = Path(name)
        database = Database.open(data / "state.db")
        outbox = Outbox(database)
        telemetry = Telemetry(Settings(data=data, telemetry_flush=0.05, telemetry_batch=200), outbox)
        await telemetry.start()
        load = Load(Ledger(database, outbox), telemetry)
        tasks = [asyncio.create_task(load.run()), asyncio.create_task(load.read())]
        for number in range(KILLS):
            await kill(telemetry, number)
        load.stop = True
        await asyncio.gather(*tasks)
        async with asyncio.timeout(60):
            await settled(telemetry, outbox)
        assert load.refused
        await check(telemetry, load)
        await telemetry.stop()
        await database.close()


async def kill(telemetry: Telemetry, number: int) -> None:
    """Two of three kills hit a store at work, the third one that is only starting."""
    while number % 3 != 2 and not telemetry.healthy:
        await asyncio.sleep(0.02)
    await asyncio.sleep(0.2 + 0.07 * (number % 5))
    assert telemetry.supervisor is not None
    if (pid := telemetry.supervisor.pid) is not None:
        os.kill(pid, signal.SIGKILL)
    await asyncio.sleep(0.1)


async def settled(telemetry: Telemetry, outbox: Outbox) -> None:
    while not telemetry.healthy or await outbox.waiting() or telemetry.spool:
        await asyncio.sleep(0.05)
    await telemetry.barrier()


async def check(telemetry: Telemetry, load: Load) -> None:
    for table in ("requests", "billing", "payloads"):
        rows = await telemetry.select(f"SELECT request_id AS id FROM {table}")
        assert sorted(row["id"] for row in rows) == sorted(load.ids), table
    rows = await telemetry.select("SELECT ts FROM logs ORDER BY ts")
    assert [row["ts"] for row in rows] == load.lines
    (raw,) = await telemetry.select("SELECT count() AS n, countIf(status = 'error') AS e FROM requests")
    (rolled,) = await telemetry.select("SELECT sum(request_count) AS n, sum(error_count) AS e FROM requests_hourly")
    assert raw == rolled
    (raw,) = await telemetry.select("SELECT count() AS n, sum(billable_units) AS u FROM billing")
    (rolled,) = await telemetry.select("SELECT sum(billing_count) AS n, sum(billable_units) AS u FROM billing_hourly")
    assert raw == rolled
