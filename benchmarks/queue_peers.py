"""Other queues doing the same job: FastAPI in front, one worker behind, the store of each synced at every commit."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
from tests.serving import free_ports

from benchmarks import sides
from benchmarks.load import cpu_seconds, post

NAMES = {"procrastinate": "PostgreSQL", "saq": "Redis", "taskiq": "Redis"}
"""Each peer and what it keeps its jobs in."""
PATIENCE = 300.0
DEBIAN = "/usr/lib/postgresql"


def available() -> bool:
    """Whether the peers' environment, Redis and PostgreSQL are there."""
    return (sides.PEERS / ".ready").exists() and shutil.which("redis-server") is not None and _postgres() is not None


def _postgres() -> Path | None:
    found = sorted(Path(DEBIAN).glob("*/bin/initdb"))
    return found[-1].parent if found else None


@contextmanager
def all_sides() -> Iterator[list[sides.Side]]:
    """Every peer, started."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stores = {"PostgreSQL": _postgresql, "Redis": _redis}
        # A store of its own for each: none has the other's keys.
        found = []
        for name, store in NAMES.items():
            url, pid = stack.enter_context(stores[store](folder))
            found.append(stack.enter_context(_peer(name, url, pid)))
        yield found


def cycle(side: sides.Side, connections: int, seconds: int) -> dict[str, Any]:
    """Submit as fast as it goes for so many seconds, and wait until all jobs have ended."""
    pids = [pid for found in side.watch().values() for pid in found]
    began, cpu = time.monotonic(), cpu_seconds(pids)
    load = post(side.url, connections=connections, seconds=seconds)
    while httpx.get(f"{side.url}left", timeout=60).json() > 0:
        if time.monotonic() > began + PATIENCE:
            raise AssertionError(f"jobs of {side.name} have not ended")
        time.sleep(0.02)
    took, used = time.monotonic() - began, cpu_seconds(pids) - cpu
    return {"submit": vars(load), "jobs_s": load.requests / took, "cpu_us": used / max(load.requests, 1) * 1e6}


@contextmanager
def _peer(name: str, url: str, store: int) -> Iterator[sides.Side]:
    (port,) = free_ports(1)
    script = [str(sides.PEERS / "bin" / "python"), str(sides.HERE / "apps" / "queue_peer.py"), name]
    at = f"http://127.0.0.1:{port}/"
    with sides.child([*script, "serve", url, str(port)]) as (server, _):
        _await(f"{at}left")
        with sides.child([*script, "work", url]) as (worker, _):
            roots = {"server": server.pid, "worker": worker.pid, "store": store}
            yield sides.Side(name, at, roots=roots)


def _await(url: str) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if httpx.get(url).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.02)
    raise AssertionError(f"{url} did not answer")


@contextmanager
def _redis(folder: Path) -> Iterator[tuple[str, int]]:
    """A server that syncs its log before it answers."""
    (port,) = free_ports(1)
    home = Path(tempfile.mkdtemp(dir=folder))
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", str(home), "--save", ""]
    with sides.child([*command, "--appendonly", "yes", "--appendfsync", "always"]) as (process, _):
        yield f"redis://127.0.0.1:{port}", process.pid


@contextmanager
def _postgresql(folder: Path) -> Iterator[tuple[str, int]]:
    """A cluster with the settings it comes with: a commit is synced. It refuses to run as root."""
    programs = _postgres()
    assert programs is not None
    (port,) = free_ports(1)
    home = Path(tempfile.mkdtemp(dir=folder))
    user = "postgres" if os.getuid() == 0 else None
    if user is not None:
        folder.chmod(0o755)
        shutil.chown(home, user)
    run: dict[str, Any] = {"user": user, "cwd": home}
    make = [str(programs / "initdb"), "-D", str(home / "data"), "-A", "trust", "-U", "bench"]
    subprocess.run(make, check=True, stdout=subprocess.DEVNULL, **run)
    where = ["-h", "127.0.0.1", "-p", str(port), "-k", str(home)]
    with subprocess.Popen(
        [str(programs / "postgres"), "-D", str(home / "data"), *where],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        **run,
    ) as process:
        try:
            _accepts(programs, port)
            yield f"postgresql://bench@127.0.0.1:{port}/postgres", process.pid
        finally:
            process.send_signal(2)  # SIGINT: end the connections that are left, too


def _accepts(programs: Path, port: int) -> None:
    deadline = time.monotonic() + 60
    while subprocess.run(
        [str(programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)], check=False
    ).returncode:
        if time.monotonic() > deadline:
            raise AssertionError("PostgreSQL did not start")
        time.sleep(0.05)
