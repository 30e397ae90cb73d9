"""`varvel up` on a warm disk until it is ready, examples deployed; a call of the command line; idle memory."""

from __future__ import annotations

import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
from tests.serving import VARVEL, Server

from benchmarks import sides
from benchmarks.load import memory_mb, tree
from benchmarks.report import spread, table, write

ENGINE = "varvel.telemetry.engine"


def run(rounds: int = 5) -> str:
    """A first start deploys the examples; each round starts again on the same folder."""
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder) / "data")
        server.start(timeout=300)
        server.varvel("deploy", str(sides.HERE / "apps" / "raw_echo.py") + ":app", "--name", "idle")
        server.stop()
        raw = [_round(server) for _ in range(rounds)]
    return write("up", raw, _page(raw))


def _round(server: Server) -> dict[str, Any]:
    began = time.perf_counter()
    server.start()
    ready = time.perf_counter() - began
    try:
        httpx.post(f"{server.url}/run/me/idle", json={}, headers=server.headers).raise_for_status()
        began = time.perf_counter()
        subprocess.run([*VARVEL, "--version"], check=True, capture_output=True)
        command = time.perf_counter() - began
        time.sleep(5)
        pids = tree(server.pid)
        engines = [pid for pid in pids if ENGINE in Path(f"/proc/{pid}/cmdline").read_text()]
        whole, engine = memory_mb(pids), memory_mb(engines)
        model = max(memory_mb([pid]) for pid in pids if pid != server.pid and pid not in engines)
        return {"ready_s": ready, "cli_s": command, "all_mb": whole, "pss_mb": whole - model, "engine_mb": engine}
    finally:
        server.stop()


def _page(raw: list[dict[str, Any]]) -> str:
    def of(name: str, digits: int = 2) -> str:
        return spread([row[name] for row in raw], digits)

    rows = [
        ["`varvel up` to ready, s", of("ready_s"), "<= 3"],
        ["`varvel --version`, s", of("cli_s"), ""],
        ["idle tree with one runner and the warmed parents, PSS MB", of("pss_mb", 0), "<= 550"],
        ["the same with the runner of the OCR example, its model loaded", of("all_mb", 0), ""],
        ["of that the telemetry engine, MB", of("engine_mb", 0), "about 340"],
    ]
    return table(["start and idle", "median (min-max)", "goal"], rows)
