"""Cold starts: from nothing running to the first answer of a FastAPI app.

`bare`: `uvicorn app` in a fresh interpreter. `fresh`: Varvel without warmed parents. `bare fork`: a server forked
from a parent that has imported uvicorn and FastAPI. `forked`: Varvel as it comes. All take turns in each round.
"""

from __future__ import annotations

import http.client
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.serving import Server, free_ports

from benchmarks import sides
from benchmarks.load import BODY
from benchmarks.report import spread, table, write

SIDES = ("bare uvicorn, fresh", "Varvel, fresh", "bare fork of a warmed parent", "Varvel, forked")
GAP = 0.001
"""Seconds between two tries of a server that is not there yet."""


def run(rounds: int = 9) -> str:
    """Milliseconds of each side; ratios are taken inside a round."""
    times: dict[str, list[float]] = {name: [] for name in SIDES}
    with ExitStack() as stack:
        parent = stack.enter_context(_warmed_parent())
        fresh = stack.enter_context(sides.varvel("cold_echo", environ={"VARVEL_WARM_PARENTS": "0"}))[1]
        forked = stack.enter_context(sides.varvel("cold_echo"))[1]
        _settled(forked)
        for number in range(rounds + 1):
            found = (_bare(), _varvel(fresh), _fork(parent), _varvel(forked))
            if number:  # the first round warms disks and parents
                for name, seconds in zip(SIDES, found, strict=True):
                    times[name].append(seconds * 1000)
    return write("cold", [{"side": name, "ms": values} for name, values in times.items()], _page(times))


def _page(times: dict[str, list[float]]) -> str:
    rows = [[name, spread(values, 0)] for name, values in times.items()]
    page = table(["first answer of a FastAPI app, ms", "median (min-max)"], rows)
    ratios = []
    for ours, theirs, goal in ((1, 0, "<= 1.15"), (3, 2, "<= 2.5")):
        turns = [a / b for a, b in zip(times[SIDES[ours]], times[SIDES[theirs]], strict=True)]
        ratios.append([f"{SIDES[ours]} / {SIDES[theirs]}", spread(turns), goal, f"{statistics.median(turns):.2f}"])
    return page + "\n\n" + table(["ratio, round by round", "median (min-max)", "goal", "median"], ratios)


def _bare() -> float:
    (port,) = free_ports(1)
    target = "benchmarks.apps.fastapi_echo:app"
    command = [sys.executable, "-m", "uvicorn", target, "--port", str(port), "--no-access-log", "--log-level", "error"]
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=sides.HERE.parent)
    try:
        _first_answer(port)
        return time.perf_counter() - began
    finally:
        process.terminate()
        process.wait(10)


@contextmanager
def _warmed_parent() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "benchmarks.warm_fork"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=sides.HERE.parent) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "warm\n"
        yield process
        assert process.stdin is not None
        process.stdin.close()


def _fork(parent: subprocess.Popen[str]) -> float:
    (port,) = free_ports(1)
    assert parent.stdin is not None
    assert parent.stdout is not None
    began = time.perf_counter()
    parent.stdin.write(f"{port}\n")
    parent.stdin.flush()
    pid = int(parent.stdout.readline())
    try:
        _first_answer(port)
        return time.perf_counter() - began
    finally:
        os.kill(pid, signal.SIGTERM)


def _varvel(server: Server) -> float:
    """A call to an app that has no runner."""
    _no_runner(server)
    began = time.perf_counter()
    _first_answer(server.port, "/run/me/echo", {"Authorization": f"Key {server.key}"})
    return time.perf_counter() - began


def _no_runner(server: Server) -> None:
    deadline = time.monotonic() + 90
    while any(Path(server.data, "run").glob("*.sock")):
        if time.monotonic() > deadline:
            raise AssertionError("the runner does not end")
        time.sleep(0.01)
    time.sleep(0.2)


def _settled(server: Server) -> None:
    """The warmed parent has its imports: a call is answered, and there is time for them."""
    _varvel(server)
    time.sleep(3)


def _first_answer(port: int, path: str = "/", headers: dict[str, str] | None = None) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            connection.request("POST", path, BODY, {"content-type": "application/json", **(headers or {})})
            answer = connection.getresponse()
            body: Any = answer.read()
        except (ConnectionError, http.client.HTTPException):
            time.sleep(GAP)
            continue
        finally:
            connection.close()
        if answer.status != 200:
            raise AssertionError(f"{answer.status}: {body[:300]!r}")
        return
    raise AssertionError("nobody answered")
