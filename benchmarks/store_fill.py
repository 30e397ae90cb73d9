"""Millions of rows of telemetry, made inside the engine: INSERT ... SELECT FROM numbers().

Requests and billing: 50 apps of 4 routes, 90 days, a few of them hot, log-normal durations with a cliff at 12 s.
Logs: 10 days, the same apps, a dozen words of a vocabulary of 5,000 in a line, tracebacks in one of a hundred, and
rare things to search for.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

from varvel.telemetry.client import StoreClient
from varvel.telemetry.closing import close_asked, close_days
from varvel.telemetry.schema import statements

DAYS = 90
LOG_DAYS = 10
DAY_US = 86_400_000_000

_REQUESTS = """
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
_BILLING = """
INSERT INTO billing (request_id, owner, app, endpoint_id, caller, ended_at, recorded_at, billable_units,
    billable_duration, machine_type, unit)
SELECT request_id, owner, app, endpoint_id, caller, ended_at, ended_at,
    if(status_code >= 500, 0, duration), if(status_code >= 500, 0, duration), machine_type, 'seconds'
FROM requests WHERE ended_at >= {begin:Int64} AND ended_at < {begin:Int64} + 86400000000
"""
_RUNNERS = """
INSERT INTO runner_states (row_id, owner, app, environment, machine_type, since, until, seconds, pending, setup, idle,
    running, draining, terminating)
SELECT toString(generateUUIDv4(number)), 'me', concat('me/app', toString(number % 50)), 'main', 'S',
    {begin:Int64} + intDiv(number, 50) * 60000000 AS since, since + 60000000, 60, 0, 0, 1, 1, 0, 0
FROM numbers(72000)
"""
# Ten lines a request. The rare: one line in 100,000 holds needle-<n>, one in 10,000 a kernel panic, one in 1,000
# runs out of memory; 10,000 tenants.
_LOGS = """
INSERT INTO logs (ts, owner, app, revision, job_id, request_id, endpoint, level, source, message, labels)
WITH
    arrayMap(i -> substring(lower(hex(sipHash64(i))), 1, 4 + i % 6), range(5000)) AS vocabulary,
    cityHash64(number, {begin:Int64}) AS chance,
    cityHash64(intDiv(number, 10), {begin:Int64}) AS call,
    toUInt32(200 * pow((call % 1000003) / 1000003, 2.5)) AS place,
    concat('me/app', toString(place % 50)) AS name,
    lower(hex(cityHash64(call, 1))) AS a,
    lower(hex(cityHash64(call, 2))) AS b,
    concat(substring(a, 1, 8), '-', substring(a, 9, 4), '-4', substring(a, 13, 3), '-8', substring(b, 1, 3), '-',
        substring(b, 4, 12)) AS request,
    concat('00000000-0000-4000-8000-0000000000', leftPad(toString(call % 40), 2, '0')) AS runner,
    arrayStringConcat(arrayMap(i -> vocabulary[1 + cityHash64(chance, i) % 5000], range(12)), ' ') AS words
SELECT {begin:Int64} + number * {step:Int64}, 'me', name, 'rev', runner, request,
    if(place < 50, '/', concat('/r', toString(intDiv(place, 50)))),
    multiIf(chance % 100 = 1, 'error', chance % 25 = 2, 'warning', chance % 10 = 3, 'debug', chance % 4 = 0, 'stdout',
        'info'),
    'gateway',
    multiIf(
        chance % 100000 = 5, concat('found needle-', toString(chance % 997), 'x in ', words),
        chance % 10000 = 6, concat('kernel panic: ', words),
        chance % 1000 = 7, concat('out of memory while ', words),
        chance % 100 = 1, concat('Traceback (most recent call last)\\n', repeat(concat('  File "app.py" in ', words,
            '\\n'), 5 + chance % 20), 'ValueError: ', words),
        chance % 3 = 0, concat('request completed in ', toString(chance % 5000), ' ms ', words),
        words),
    map('fal_app_name', name, 'fal_request_id', request,
        'tenant', concat('t', toString(cityHash64(chance, 99) % 10000)),
        'region', concat('zone-', toString(chance % 5)))
FROM numbers({rows:UInt64})
"""
NEWEST_CALL = """
SELECT request_id, job_id FROM logs WHERE ts < {middle:Int64} AND ts > {middle:Int64} - 3600000000
ORDER BY ts DESC LIMIT 1
"""


class Store(StoreClient):
    """The engine without the server's feeder: nothing is on its way."""

    healthy = True
    last_ts = 0
    pid = 0
    """Process of the engine."""

    def __init__(self, target: Path | str, *, timeout: float = 30.0) -> None:
        super().__init__(target, timeout=timeout)
        self.wanted: dict[str, dict[int, int]] = {}

    async def barrier(self) -> None: ...

    def keep_closed(self, step: str, stretches: Mapping[int, int]) -> None:
        """Remember what the server would close in the background."""
        self.wanted.setdefault(step, {}).update(stretches)

    async def close_wanted(self, now: float) -> None:
        """What the server does some seconds after the first call."""
        for step, stretches in self.wanted.items():
            await close_asked(self, step, stretches, now, 24)
        self.wanted.clear()


S = TypeVar("S", bound=Store)


@asynccontextmanager
async def engine(folder: Path, kind: type[S]) -> AsyncIterator[S]:
    """An engine on `folder`, ended with the block, and a client of it."""
    socket = folder / "s"
    arguments = ["--data", str(folder / "data"), "--socket", str(socket), "--memory", str(4 * 1024**3)]
    process = subprocess.Popen(
        [sys.executable, "-m", "varvel.telemetry.engine", *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdout.readline()
    store = kind(socket, timeout=600)
    store.pid = process.pid
    try:
        yield store
    finally:
        await store.close()
        process.stdin.close()
        process.terminate()
        process.wait(60)


async def fill(store: Store, rows: int, end: int) -> dict[str, float]:
    """So many requests and so many log lines up to `end` (microseconds); gives the seconds that each kind took."""
    for statement in statements():
        await store.execute(statement)
    times: dict[str, float] = {}
    began = time.perf_counter()
    daily = rows // DAYS
    for day in range(DAYS):
        begin = end - (DAYS - day) * DAY_US
        await store.execute(_REQUESTS, {"begin": begin, "step": DAY_US // daily, "rows": daily})
        await store.execute(_BILLING, {"begin": begin})
        await store.execute(_RUNNERS, {"begin": begin})
    times["requests"] = time.perf_counter() - began
    began = time.perf_counter()
    await close_days(store, end / 1_000_000 + 86_400)  # as the server does by itself
    times["closed days"] = time.perf_counter() - began
    began = time.perf_counter()
    daily = rows // LOG_DAYS
    for day in range(LOG_DAYS):
        begin = end - (LOG_DAYS - day) * DAY_US
        await store.execute(_LOGS, {"begin": begin, "step": DAY_US // daily, "rows": daily})
    times["logs"] = time.perf_counter() - began
    return times
