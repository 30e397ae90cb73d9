"""Requests, analytics, usage and logs on a store of millions of rows, asked through the Platform API.

    python -m benchmarks.store_scale --rows 1000000,10000000

So many requests (of 90 days) and so many log lines (of 10 days) are made inside the engine by `store_fill`. Each
figure is the time of a call of the API in the process of the server, store included; the engine's query condition
cache is off, so that a repeated call is not free. After the first round, which is not counted, what it asked for is
closed, as the server does by itself: so days in Berlin are shown as they cost from the second time on. Beside it
stands the bare SQL, in turns with the calls: for pages one statement over the narrowest of our windows that holds the
page (which a caller could not know beforehand), for the rest the statements of the call, alone.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import httpx
import psutil

from benchmarks.report import spread, table, write
from benchmarks.store_fill import DAYS, LOG_DAYS, NEWEST_CALL, Store, engine, fill
from varvel.auth.keys import KeyStore
from varvel.billing.machines import machine_types
from varvel.ids import iso
from varvel.platform import account, analytics, api, focus, logs, requests, usage
from varvel.platform.analytics_sql import METRICS
from varvel.platform.parts import PlatformParts
from varvel.settings import Settings
from varvel.state.database import Database

OWNER = "me"
SIZES = (1_000_000, 10_000_000)
REQUESTS = "/serverless/requests/by-endpoint"
ANALYTICS = "/serverless/analytics"
LOGS = "/serverless/logs/history"
HOUR = 3_600_000_000
WINDOWS = (HOUR, 6 * HOUR, 24 * HOUR, 168 * HOUR, DAYS * 24 * HOUR)
Statement = tuple[str, dict[str, Any]]


class Recorded(Store):
    """Remembers the statements of the call at hand; the condition cache is off for all of them."""

    asked: list[Statement]

    async def select(
        self, sql: str, params: Mapping[str, Any] | None = None, *, timeout: float | None = None
    ) -> list[dict[str, Any]]:
        self.asked.append((sql, dict(params or {})))
        return await super().select(sql, params, timeout=timeout)

    def _query(
        self, settings: Mapping[str, str], params: Mapping[str, Any] | None, timeout: float | None
    ) -> dict[str, str]:
        return {"use_query_condition_cache": "0", **super()._query(settings, params, timeout)}


@dataclass(frozen=True)
class Question:
    """A call that is measured. `best` makes the bare SQL of a page out of its statements and items."""

    name: str
    path: str
    params: dict[str, Any]
    goal: str = ""
    body: list[dict[str, Any]] | None = None
    deep: bool = False
    time_column: str = ""

    async def call(self, client: httpx.AsyncClient, cursor: str | None = None) -> httpx.Response:
        params = self.params if cursor is None else self.params | {"cursor": cursor}
        if self.path == LOGS:
            return await client.post(self.path, params=params, json=self.body)
        return await client.get(self.path, params=params)


@dataclass
class Times:
    """Milliseconds of the calls of one question, and of its bare SQL, round by round."""

    api: list[float] = field(default_factory=list)
    sql: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    """Of the call, server and engine together; counted in steps of 10 ms, so only its mean says something."""

    @property
    def added(self) -> list[float]:
        return [ours - bare for ours, bare in zip(self.api, self.sql, strict=True)]


def _times(end: float, days: float) -> dict[str, str]:
    return {"start": iso(end - days * 86400), "end": iso(end)}


def request_questions(end: float) -> list[Question]:
    """`end` is when the newest row ended, in seconds."""
    quarter = _times(end, DAYS)
    one = {"endpoint_id": "me/app3", "limit": 100}
    hot = {"endpoint_id": "me/app0", "limit": 100}
    fifty = [f"me/app{number}" for number in range(50)]
    newest: list[tuple[str, dict[str, Any], str]] = [
        ("newest 100, one app", one, "p95 <= 30"),
        ("newest 100, hottest app, with billing", hot | {"expand": "billing"}, ""),
        ("newest 100, 5xx only", one | {"status": "error"}, ""),
        ("newest 100, 50 apps", {"endpoint_id": fifty, "limit": 100}, ""),
        ("newest 100 of 90 days, page 1", hot | quarter, "p95 <= 30"),
    ]
    return [
        *(Question(name, REQUESTS, params, goal, time_column="ended_at") for name, params, goal in newest),
        Question("newest 100 of 90 days, page 101", REQUESTS, hot | quarter, "as page 1", deep=True,
                 time_column="ended_at"),
        Question("longest 100 of a day", REQUESTS, hot | {"sort_by": "duration"}, "<= 60"),
        Question("longest 100 of 90 days", REQUESTS, hot | quarter | {"sort_by": "duration"}, "<= 60"),
        Question("longest 100 of 90 days, page 101", REQUESTS, hot | quarter | {"sort_by": "duration"}, "as page 1",
                 deep=True),
    ]  # fmt: skip


def analytics_questions(end: float) -> list[Question]:
    month, quarter = _times(end, 30), _times(end, DAYS)
    every = ",".join(("time_series", *METRICS))
    counts = "time_series,request_count,error_count"
    hourly: dict[str, Any] = {"timeframe": "hour", "expand": every} | month
    daily: dict[str, Any] = {"timeframe": "day", "expand": every} | quarter
    routes = [f"me/app{number}/r1" for number in range(50)]
    apps = [f"me/app{number}" for number in range(50)]
    asked: list[tuple[str, dict[str, Any], str]] = [
        ("1 endpoint, 30 days by hour, every metric", {"endpoint_id": "me/app3/r1"} | hourly, "<= 60"),
        ("1 app (4 endpoints), 30 days by hour, every metric", {"endpoint_id": "me/app3"} | hourly, ""),
        ("hottest app, 30 days by hour, every metric", {"endpoint_id": "me/app0"} | hourly, ""),
        ("50 endpoints, 90 days by day, every metric", {"endpoint_id": routes} | daily, "<= 300"),
        ("50 endpoints, 90 days by day in Berlin, every metric",
         {"endpoint_id": routes, "timezone": "Europe/Berlin"} | daily, "<= 300"),
        ("50 endpoints, 90 days by day, counts", {"endpoint_id": routes} | daily | {"expand": counts}, ""),
        ("50 apps (200 endpoints), 90 days by day, every metric", {"endpoint_id": apps} | daily, ""),
    ]  # fmt: skip
    found = [Question(name, ANALYTICS, params, goal) for name, params, goal in asked]
    return [*found, Question("usage of 50 apps, 90 days by day", "/serverless/usage", {"timeframe": "day"} | quarter)]


async def log_questions(store: Recorded, end: float) -> list[Question]:
    """Newest first, of all 10 days unless said otherwise; the request looked for is in the middle of them."""
    middle = int((end - LOG_DAYS * 43200) * 1e6)
    [call] = await store.select(NEWEST_CALL, {"middle": middle})
    everything = {"limit": 100} | _times(end, LOG_DAYS)
    day = {"limit": 100} | _times(end, 1)
    tenant = [{"key": "tenant", "value": "t77", "condition_type": "equals"}]
    request = [{"key": "fal_request_id", "value": call["request_id"], "condition_type": "equals"}]
    asked: list[tuple[str, dict[str, Any], str, list[dict[str, Any]] | None]] = [
        ("lines, newest 100", everything, "<= 20", None),
        ("lines of an app", everything | {"app_id": "me/app3"}, "<= 20", None),
        ("lines of level error and above", everything | {"level": "error"}, "<= 20", None),
        ("lines of a day in the middle", {"limit": 100} | _times(end - LOG_DAYS * 43200, 1), "<= 20", None),
        ("lines of a request_id", everything | {"request_id": call["request_id"]}, "<= 70", None),
        ("lines of a job_id", everything | {"job_id": call["job_id"]}, "<= 70", None),
        ("lines with label tenant = t77 (1 of 10,000)", everything, "<= 130", tenant),
        ("lines with label fal_request_id =", everything, "<= 130", request),
        ("lines with the word panic (1 of 10,000)", everything | {"search": "panic"}, "<= 150", None),
        ("lines with the words out of memory (1 of 1,000)", everything | {"search": "out of memory"}, "<= 150", None),
        ("substring of a day, rare: eedle-1", day | {"search": "eedle-1"}, "<= 1,000", None),
        ("substring of a day, absent: %nowhere%", day | {"search": "%nowhere%"}, "<= 1,000", None),
    ]
    return [
        Question(name, LOGS, params, goal, body=body, time_column="ts") for name, params, goal, body in asked
    ]  # fmt: skip


@asynccontextmanager
async def served(store: Recorded, folder: Path, end: float) -> AsyncIterator[httpx.AsyncClient]:
    """The Platform API over the store, at the moment `end`."""
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
    sections = (account, analytics, focus, logs, requests, usage)
    app = api.build(parts, [section.router(parts) for section in sections])
    headers = {"Authorization": f"Key {(await keys.add_owner(OWNER)).key}"}
    try:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://varvel/v1", headers=headers, timeout=600
        ) as client:
            yield client
    finally:
        await database.close()


async def _cursor(client: httpx.AsyncClient, question: Question) -> str | None:
    """A cursor a hundred pages down, by number first, for the deep ones."""
    if not question.deep:
        return None
    return str((await question.call(client, "MTAw")).json()["next_cursor"])


def bare(question: Question, asked: list[Statement], items: list[Any]) -> list[Statement]:
    """The statements that answer the same without us."""
    if not question.time_column:
        return asked
    pages = [statement for statement in asked if "low" in statement[1] or "start" in statement[1]]
    (_, first), (sql, params) = pages[0], pages[-1]
    low, high, shown = ("low", "high", "timestamp") if "low" in params else ("start", "end", "ended_at")
    newest: int = first["last_ended"] if "last_ended" in first else first[high]
    first_in_range: int = params[low]
    full = len(items) == question.params["limit"]
    oldest = _micros(items[-1][shown]) if full else first_in_range
    reach = next((newest - width for width in WINDOWS if newest - width <= oldest), oldest)
    limit = {"limit": question.params["limit"] + 1} if "limit" in params else {}
    rest = [statement for statement in asked if statement not in pages]
    return [(sql, params | {low: reach, high: first[high]} | limit), *rest]


def _micros(text: str) -> int:
    return int(datetime.fromisoformat(text).astimezone(UTC).timestamp() * 1e6)


def _cpu(engine_pid: int) -> float:
    """Milliseconds of CPU time that this process and the engine have spent."""
    times = psutil.Process(engine_pid).cpu_times()
    return (float(times.user + times.system) + time.process_time()) * 1000


async def measure(
    store: Recorded, client: httpx.AsyncClient, asked: list[Question], rounds: int, note: Callable[[str], None]
) -> dict[str, Times]:
    """Calls and bare SQL in turns; the first round warms up and is not counted."""
    found = {question.name: Times() for question in asked}
    cursors = {question.name: await _cursor(client, question) for question in asked}
    for number in range(rounds + 1):
        for question in asked:
            took, alone, used = await _turn(store, client, question, cursors[question.name])
            if number:
                found[question.name].api.append(took)
                found[question.name].sql.append(alone)
                found[question.name].cpu.append(used)
            else:
                note(f"{question.name}: {took:.1f} ms")
        await store.close_wanted(time.time() + 86_400)
    return found


async def _turn(
    store: Recorded, client: httpx.AsyncClient, question: Question, cursor: str | None
) -> tuple[float, float, float]:
    """Milliseconds of one call, of its bare SQL, and of CPU time of the call."""
    gc.collect()  # what the answer before this one left is none of its business
    store.asked = []
    spent, began = _cpu(store.pid), time.perf_counter()
    answer = await question.call(client, cursor)
    took, used = (time.perf_counter() - began) * 1000, _cpu(store.pid) - spent
    assert answer.status_code == 200, answer.text
    body = answer.json()
    items = body.get("items", body) if isinstance(body, dict) else body
    statements = bare(question, store.asked, cast(list[Any], items))
    began = time.perf_counter()
    await asyncio.gather(*(store.select(*statement) for statement in statements))
    return took, (time.perf_counter() - began) * 1000, used


async def run(sizes: Sequence[int], rounds: int, folder: Path) -> str:
    """Every size in a store of its own."""
    raw: list[dict[str, Any]] = []
    columns: list[dict[str, Times]] = []
    asked: list[Question] = []
    end = int(time.time() // 86400) * 86400
    for rows in sizes:
        place = folder / str(rows)
        place.mkdir()
        async with engine(place, Recorded) as store, served(store, place, end) as client:
            store.asked = []
            seconds = await fill(store, rows, end * 1_000_000)
            _note(f"{rows:,} rows: " + ", ".join(f"{kind} filled in {took:.0f} s" for kind, took in seconds.items()))
            asked = [*request_questions(end), *analytics_questions(end), *await log_questions(store, end)]
            found = await measure(store, client, asked, rounds, _note)
        columns.append(found)
        raw += [{"rows": rows, "question": name, **asdict(times)} for name, times in found.items()]
    return write("store_scale", raw, page(asked, sizes, columns))


def page(asked: list[Question], sizes: Sequence[int], columns: list[dict[str, Times]]) -> str:
    """A line a question: our call at each size, and at the largest the bare SQL and what we add to it."""
    head = [
        "call, ms: median (min-max)",
        *(f"{rows:,} rows" for rows in sizes),
        "bare SQL",
        "we add",
        "CPU, mean",
        "goal",
    ]
    if len(columns) > 1:
        head.insert(len(head) - 1, "last / first")
    lines = []
    for question in asked:
        mine = [found[question.name] for found in columns]
        line = [question.name, *(spread(times.api, 1) for times in mine)]
        line += [spread(mine[-1].sql, 1), spread(mine[-1].added, 1)]
        line.append(f"{statistics.mean(mine[-1].cpu):.0f}")
        if len(columns) > 1:
            line.append(f"{statistics.median(mine[-1].api) / statistics.median(mine[0].api):.2f}")
        lines.append([*line, question.goal])
    return table(head, lines)


def _note(text: str) -> None:
    print(text, file=sys.stderr)


def _sizes(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def bench(rounds: int = 9, sizes: Sequence[int] = SIZES) -> str:
    """The whole suite."""
    with tempfile.TemporaryDirectory(prefix="varvel-scale-") as folder:
        return asyncio.run(run(sizes, rounds, Path(folder)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=_sizes, default=list(SIZES), help="sizes, with commas between them")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    print(bench(arguments.rounds, arguments.rows))


if __name__ == "__main__":
    main()
