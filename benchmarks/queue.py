"""The queue over HTTP, full cycle: submit, dispatch, run, result stored, recorded, billed.

Beside it bare FastAPI, which only answers: what the same load costs when nothing is kept.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from tests.serving import Server

from benchmarks import sides
from benchmarks.load import Load, cpu_seconds, post
from benchmarks.report import spread, table, write

CONNECTIONS = 32
PATIENCE = 300.0
"""Seconds after which jobs that have not ended count as lost."""


def run(rounds: int = 5, seconds: int = 3) -> str:
    """Each round: bare FastAPI, then submits as fast as they go until all jobs have ended, then at half that pace."""
    raw: list[dict[str, Any]] = []
    with ExitStack() as stack:
        bare = stack.enter_context(sides.bare("fastapi_echo"))
        side, server = stack.enter_context(sides.varvel("raw_echo", "/queue/me/echo"))
        post(side.url, connections=8, seconds=1, headers=side.headers)
        _drain(server)
        for number in range(rounds):
            floor = post(bare.url, connections=CONNECTIONS, seconds=seconds, watch=bare.watch())
            full = _cycle(side, server, seconds, 0)
            pause = round(2000 * CONNECTIONS / full["jobs_s"] - full["submit"].p50)
            half = _cycle(side, server, seconds, max(1, pause))
            raw.append({"round": number, "bare": vars(floor)} | {"full": _flat(full), "half": _flat(half)})
    return write("queue", raw, _page(raw))


def _cycle(side: sides.Side, server: Server, seconds: int, delay: int) -> dict[str, Any]:
    """Submit for so many seconds, and wait until all that was submitted has its result."""
    pids = side.watch()["tree"]
    ended_before, began, cpu = _ended(server), time.monotonic(), cpu_seconds(pids)
    load = post(side.url, connections=CONNECTIONS, seconds=seconds, headers=side.headers, delay=delay)
    _drain(server)
    took, used = time.monotonic() - began, cpu_seconds(pids) - cpu
    jobs = _ended(server) - ended_before
    if jobs < load.requests:
        raise AssertionError(f"{load.requests} were acknowledged, {jobs} have a result")
    return {"submit": load, "jobs_s": jobs / took, "cpu_us": used / jobs * 1e6, "jobs": jobs}


def _drain(server: Server) -> None:
    deadline = time.monotonic() + PATIENCE
    while _count(server, "queue_jobs"):
        if time.monotonic() > deadline:
            raise AssertionError("jobs have not ended")
        time.sleep(0.02)


def _ended(server: Server) -> int:
    return _count(server, "queue_results")


def _count(server: Server, name: str) -> int:
    path = Path(server.data, "state.db")
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return int(connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0])


def _flat(cycle: dict[str, Any]) -> dict[str, Any]:
    load: Load = cycle["submit"]
    return {**cycle, "submit": vars(load)}


def _page(raw: list[dict[str, Any]]) -> str:
    def of(value: Callable[[dict[str, Any]], float], digits: int = 2) -> str:
        return spread([value(row) for row in raw], digits)

    rows = [
        ["jobs/s, submit to stored result", of(lambda row: row["full"]["jobs_s"], 0), "about 3,000"],
        ["CPU us a job, whole tree", of(lambda row: row["full"]["cpu_us"], 0), ""],
        ["submit p50 ms, as fast as it goes", of(lambda row: row["full"]["submit"]["p50"]), ""],
        ["submit p99 ms, as fast as it goes", of(lambda row: row["full"]["submit"]["p99"]), ""],
        ["jobs/s at half load", of(lambda row: row["half"]["jobs_s"], 0), ""],
        ["submit p50 ms at half load", of(lambda row: row["half"]["submit"]["p50"]), "<= 2"],
        ["submit p99 ms at half load", of(lambda row: row["half"]["submit"]["p99"]), "<= 15"],
        ["errors", str(sum(row[part]["submit"]["errors"] for row in raw for part in ("full", "half"))), "0"],
        ["bare FastAPI, answers/s", of(lambda row: row["bare"]["rps"], 0), "orientation"],
        ["bare FastAPI, CPU us an answer", of(lambda row: row["bare"]["cpu_us"]["app"], 0), "orientation"],
        ["jobs/s / bare answers/s", of(lambda row: row["full"]["jobs_s"] / row["bare"]["rps"]), ""],
    ]
    note = f"{CONNECTIONS} connections; raw ASGI echo, 1 KB of JSON; every acknowledged job has its result.\n\n"
    return note + table(["queue over HTTP", "median (min-max)", "goal"], rows)
