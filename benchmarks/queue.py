"""The queue over HTTP, full cycle: submit, dispatch, run, result stored, recorded, billed.

Beside it bare FastAPI, which only answers: what the same load costs when nothing is kept; other queues that do the
same job behind FastAPI; and what one sync costs on the disk of the moment, which no acknowledgement can be faster than.
"""

from __future__ import annotations

import os
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from tests.serving import Server

from benchmarks import queue_peers, sides
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
        peers = stack.enter_context(queue_peers.all_sides()) if queue_peers.available() else []
        for peer in peers:
            queue_peers.cycle(peer, 8, 1)
        side, server = stack.enter_context(sides.varvel("raw_echo", "/queue/me/echo"))
        post(side.url, connections=8, seconds=1, headers=side.headers)
        _drain(server)
        for number in range(rounds):
            floor = post(bare.url, connections=CONNECTIONS, seconds=seconds, watch=bare.watch())
            full = _cycle(side, server, seconds, 0)
            pause = round(2000 * CONNECTIONS / full["jobs_s"] - full["submit"].p50)
            half = _cycle(side, server, seconds, max(1, pause))
            row = {
                "round": number,
                "bare": vars(floor),
                "full": _flat(full),
                "half": _flat(half),
                "sync_ms": _sync_ms(),
            }
            raw.append(row | {"peers": {peer.name: queue_peers.cycle(peer, CONNECTIONS, seconds) for peer in peers}})
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


def _sync_ms() -> float:
    """Median milliseconds of writing and syncing 8 KiB where the data folders are."""
    took = []
    with tempfile.NamedTemporaryFile() as file:
        for _ in range(101):
            began = time.perf_counter()
            os.pwrite(file.fileno(), b"x" * 8192, 0)
            os.fdatasync(file.fileno())
            took.append((time.perf_counter() - began) * 1000)
    return statistics.median(took)


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
        ["one sync of 8 KiB on this disk, ms", of(lambda row: row["sync_ms"]), "orientation"],
        ["errors", str(sum(row[part]["submit"]["errors"] for row in raw for part in ("full", "half"))), "0"],
        ["bare FastAPI, answers/s", of(lambda row: row["bare"]["rps"], 0), "orientation"],
        ["bare FastAPI, CPU us an answer", of(lambda row: row["bare"]["cpu_us"]["app"], 0), "orientation"],
        ["jobs/s / bare answers/s", of(lambda row: row["full"]["jobs_s"] / row["bare"]["rps"]), ""],
    ]
    note = f"{CONNECTIONS} connections; raw ASGI echo, 1 KB of JSON; every acknowledged job has its result.\n\n"
    page = note + table(["queue over HTTP", "median (min-max)", "goal"], rows)
    return page + "\n\n" + _peers_page(raw) if raw[0]["peers"] else page


def _peers_page(raw: list[dict[str, Any]]) -> str:
    rows = []
    for name, store in queue_peers.NAMES.items():
        mine = [row["peers"][name] for row in raw]
        rows.append(
            [f"{name} ({store}) behind FastAPI", spread([item["jobs_s"] for item in mine], 0)]
            + [spread([item["submit"][part] for item in mine]) for part in ("p50", "p99")]
            + [spread([item["cpu_us"] for item in mine], 0), str(sum(item["submit"]["errors"] for item in mine))]
        )
    ratios = [row["full"]["jobs_s"] / max(peer["jobs_s"] for peer in row["peers"].values()) for row in raw]
    head = ["the same job elsewhere, synced too", "jobs/s", "submit p50 ms", "submit p99 ms", "CPU us a job", "errors"]
    return table(head, rows) + f"\n\nVarvel's jobs/s / the best of them, round by round: {spread(ratios)}; goal >= 2\n"
