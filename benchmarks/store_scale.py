"""Requests, analytics and usage on a store of millions of rows, asked through the Platform API.

    python -m benchmarks.store_scale --rows 1000000 10000000

The rows are made inside the engine (INSERT ... SELECT FROM numbers()): 50 apps of 4 routes, 90 days, a few of them hot,
log-normal durations with a cliff at 12 s. Each figure is the time of a call of the API in the process of the server,
store included; the engine's query condition cache is off, so that a repeated call is not free.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import httpx

from benchmarks.report import spread, table, write
from varvel.auth.keys import KeyStore
from varvel.billing.machines import machine_types
from varvel.platform import account, analytics, api, focus, requests, usage
from varvel.platform.analytics_sql import METRICS
from varvel.platform.parts import PlatformParts
from varvel.settings import Settings
from varvel.state.database import Database
from varvel.telemetry.client import StoreClient
from varvel.telemetry.schema import statements

DAYS = 90
DAY_US = 86_400_000_000
OWNER = "me"
REQUESTS = "/serverless/requests/by-endpoint"
ANALYTICS = "/serverless/analytics"

FILL = """
INSERT INTO requests (request_id, owner, app, endpoint_id, caller, kind, method, sent_at, started_at, ended_at,
    status_code, error_type, duration, prepare_duration, cold_boot, runner_id, revision, machine_type, attempts)
WITH
    cityHash64(number, {begin:Int64}) AS chance,
    toUInt32(200 * pow((chance % 1000003) / 1000003, 2.5)) AS place,
    concat('me/app', toString(place % 50)) AS name,
    {begin:Int64} + number * {step:Int64} AS ended,
    exp(randNormal(-1.0, 1.0)) + if(chance % 100 = 7, 12, 0) AS seconds,
    randExponential(2.0) AS waited,
    multiIf(chance % 50 = 0, 500, chance % 30 = 0, 422, 200) AS code
SELECT toString(generateUUIDv4(number)), 'me', name,
    if(place < 50, name, concat(name, '/r', toString(intDiv(place, 50)))), 'me', 'queue', 'POST',
    ended - toInt64((seconds + waited) * 1e6), ended - toInt64(seconds * 1e6), ended, code,
    if(code = 500, 'runner_server_error', ''), seconds, waited,
    if(chance % 200 = 3, 1 + randExponential(1.0), 0), toString(toUUID(concat(
        '00000000-0000-4000-8000-0000000000', leftPad(toString(chance % 40), 2, '0')))), 'rev', 'S', 1
FROM numbers({rows:UInt64})
"""
BILL = """
INSERT INTO billing
SELECT request_id, owner, app, endpoint_id, caller, ended_at, ended_at,
    if(status_code >= 500, 0, duration), if(status_code >= 500, 0, duration), machine_type, 'seconds'
FROM requests WHERE ended_at >= {begin:Int64} AND ended_at < {begin:Int64} + 86400000000
"""
RUN = """
INSERT INTO runner_states
SELECT toString(generateUUIDv4(number)), 'me', concat('me/app', toString(number % 50)), 'main', 'S',
    {begin:Int64} + intDiv(number, 50) * 60000000 AS since, since + 60000000, 60, 0, 0, 1, 1, 0, 0
FROM numbers(72000)
"""


class Store(StoreClient):
    """The engine without the server's feeder: nothing is on its way."""

    async def barrier(self) -> None: ...


@dataclass(frozen=True)
class Question:
    """A call that is measured."""

    name: str
    path: str
    params: dict[str, Any]


@asynccontextmanager
async def engine(folder: Path) -> AsyncIterator[Store]:
    socket = folder / "s"
    arguments = ["--data", str(folder / "data"), "--socket", str(socket), "--memory", str(4 * 1024**3)]
    process = subprocess.Popen(
        [sys.executable, "-m", "varvel.telemetry.engine", *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdout.readline()
    store = Store(socket, timeout=600)
    try:
        yield store
    finally:
        await store.close()
        process.stdin.close()
        process.terminate()
        process.wait(60)


async def fill(store: Store, rows: int, end: int) -> float:
    """Rows over the 90 days before `end` (microseconds); gives the seconds that it took."""
    began = time.perf_counter()
    for statement in statements():
        await store.execute(statement)
    daily = rows // DAYS
    for day in range(DAYS):
        begin = end - (DAYS - day) * DAY_US
        await store.execute(FILL, {"begin": begin, "step": DAY_US // daily, "rows": daily})
        await store.execute(BILL, {"begin": begin})
        await store.execute(RUN, {"begin": begin})
    return time.perf_counter() - began


def questions(end: float) -> list[Question]:
    """What is asked; `end` is when the newest row ended, in seconds."""
    until = datetime.fromtimestamp(end, UTC).isoformat()
    month = {"start": datetime.fromtimestamp(end - 30 * 86400, UTC).isoformat(), "end": until}
    quarter = {"start": datetime.fromtimestamp(end - DAYS * 86400, UTC).isoformat(), "end": until}
    every = ",".join(("time_series", *METRICS))
    counts = "time_series,request_count,error_count"
    fifty = [f"me/app{number}" for number in range(50)]
    routes = [f"me/app{number}/r1" for number in range(50)]
    one = {"endpoint_id": "me/app3", "limit": 100}
    hot = {"endpoint_id": "me/app0", "limit": 100}
    return [
        Question("newest 100, one app", REQUESTS, one),
        Question("newest 100, hottest app, with billing", REQUESTS, hot | {"expand": "billing"}),
        Question("newest 100, 5xx only", REQUESTS, one | {"status": "error"}),
        Question("newest 100 of 90 days, page 1", REQUESTS, hot | quarter),
        Question("newest 100 of 90 days, deep page", REQUESTS, hot | quarter | {"cursor": "deep"}),
        Question("longest 100 of a day", REQUESTS, hot | {"sort_by": "duration"}),
        Question("longest 100 of 90 days", REQUESTS, hot | quarter | {"sort_by": "duration"}),
        Question("newest 100, 50 apps", REQUESTS, {"endpoint_id": fifty, "limit": 100}),
        Question("1 endpoint, 30 days by hour, every metric", ANALYTICS,
                 {"endpoint_id": "me/app3/r1", "timeframe": "hour", "expand": every} | month),
        Question("1 app (4 endpoints), 30 days by hour, every metric", ANALYTICS,
                 {"endpoint_id": "me/app3", "timeframe": "hour", "expand": every} | month),
        Question("hottest app, 30 days by hour, every metric", ANALYTICS,
                 {"endpoint_id": "me/app0", "timeframe": "hour", "expand": every} | month),
        Question("50 endpoints, 90 days by day, every metric", ANALYTICS,
                 {"endpoint_id": routes, "timeframe": "day", "expand": every} | quarter),
        Question("50 endpoints, 90 days by day, counts", ANALYTICS,
                 {"endpoint_id": routes, "timeframe": "day", "expand": counts} | quarter),
        Question("50 apps (200 endpoints), 90 days by day, every metric", ANALYTICS,
                 {"endpoint_id": fifty, "timeframe": "day", "expand": every} | quarter),
        Question("usage of 50 apps, 90 days by day", "/serverless/usage", {"timeframe": "day"} | quarter),
    ]  # fmt: skip


@asynccontextmanager
async def served(store: Store, folder: Path, end: float) -> AsyncIterator[httpx.AsyncClient]:
    database = Database.open(folder / "state.db")
    keys = KeyStore(database)
    await keys.start()
    settings = Settings(data=folder, rate_limit=0)
    missing = cast(Any, None)
    parts = PlatformParts(
        settings=settings, authenticator=keys, keys=keys, catalog=missing, scheduler=missing, pool=missing,
        telemetry=cast(Any, store), ledger=missing, meter=missing, files=missing, machines=machine_types(settings),
        database=database, clock=lambda: end,
    )  # fmt: skip
    sections = (account, analytics, focus, requests, usage)
    app = api.build(parts, [section.router(parts) for section in sections])
    headers = {"Authorization": f"Key {(await keys.add_owner(OWNER)).key}"}
    try:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://varvel/v1", headers=headers, timeout=600
        ) as client:
            yield client
    finally:
        await database.close()


async def _deep(client: httpx.AsyncClient, params: dict[str, Any]) -> str:
    """A cursor a hundred pages down, by number first."""
    body = (await client.get(REQUESTS, params=params | {"cursor": "MTAw"})).json()
    return str(body["next_cursor"])


async def measure(client: httpx.AsyncClient, asked: list[Question], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each call, the questions taking turns; the first round warms up and is not counted."""
    found: dict[str, list[float]] = {question.name: [] for question in asked}
    for number in range(rounds + 1):
        for question in asked:
            params = dict(question.params)
            if params.get("cursor") == "deep":
                params.pop("cursor")
                params["cursor"] = await _deep(client, params)
            began = time.perf_counter()
            answer = await client.get(question.path, params=params)
            took = (time.perf_counter() - began) * 1000
            assert answer.status_code == 200, answer.text
            if number:
                found[question.name].append(took)
    return found


async def run(sizes: list[int], rounds: int, folder: Path) -> str:
    """Every size in a store of its own."""
    raw: list[dict[str, Any]] = []
    columns: list[dict[str, list[float]]] = []
    end = int(time.time() // 86400) * 86400
    for rows in sizes:
        place = folder / str(rows)
        place.mkdir()
        async with engine(place) as store, served(store, place, end) as client:
            seconds = await fill(store, rows, end * 1_000_000)
            print(f"{rows:,} rows filled in {seconds:.0f} s", file=sys.stderr)
            found = await measure(client, questions(end), rounds)
        columns.append(found)
        raw += [{"rows": rows, "question": name, "ms": times} for name, times in found.items()]
    head = ["call, ms: median (min-max)", *(f"{rows:,} requests" for rows in sizes)]
    lines = [[name, *(spread(found[name], 1) for found in columns)] for name in columns[0]]
    if len(columns) > 1:
        head.append("last / first")
        for line, name in zip(lines, columns[0], strict=True):
            line.append(f"{statistics.median(columns[-1][name]) / statistics.median(columns[0][name]):.2f}")
    return write("store_scale", raw, table(head, lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="varvel-scale-") as folder:
        print(asyncio.run(run(arguments.rows, arguments.rounds, Path(folder))))


if __name__ == "__main__":
    main()
