"""The sides of a comparison, each a server on loopback with its processes, started and stopped by their ids."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from tests.serving import Server, free_ports

from benchmarks.load import BODY, tree

HERE = Path(__file__).parent
PEERS = HERE.parent / ".venv-peers"


@dataclass
class Side:
    """One server to load: where, with which headers, and which process trees do the work."""

    name: str
    url: str
    headers: dict[str, str] = field(default_factory=dict)
    roots: dict[str, int] = field(default_factory=dict)
    ready_after: float = 0.0

    def watch(self) -> dict[str, list[int]]:
        return {name: tree(pid) for name, pid in self.roots.items()}


def _await(url: str, process: subprocess.Popen[Any] | None, headers: dict[str, str] | None = None) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if process is None or process.poll() is not None:
            raise AssertionError(f"the server for {url} ended")
        try:
            answer = httpx.post(url, content=BODY, headers={"content-type": "application/json", **(headers or {})})
            if answer.status_code == 200 and answer.json() == {"text": "v" * 1010}:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.005)
    raise AssertionError(f"{url} did not answer")


@contextmanager
def child(command: list[str], url: str | None = None) -> Iterator[tuple[subprocess.Popen[bytes], float]]:
    """A process that is terminated at the end of the block, and the seconds until `url` echoed."""
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=HERE.parent)
    try:
        if url is not None:
            _await(url, process)
        yield process, time.monotonic() - started
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _uvicorn(app: str, *where: str) -> list[str]:
    target = f"benchmarks.apps.{app}:app"
    return [sys.executable, "-m", "uvicorn", target, *where, "--no-access-log", "--log-level", "error"]


@contextmanager
def bare(app: str) -> Iterator[Side]:
    """The app on uvicorn, nothing in front of it."""
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}/"
    with child(_uvicorn(app, "--port", str(port)), url) as (process, ready):
        yield Side(f"bare {app}", url, roots={"app": process.pid}, ready_after=ready)


@contextmanager
def forwarded(app: str) -> Iterator[Side]:
    """The app on a unix socket behind a gateway that only forwards."""
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}/"
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        runner, _ = stack.enter_context(child(_uvicorn(app, "--uds", f"{folder}/app.sock")))
        while not Path(folder, "app.sock").exists():
            time.sleep(0.01)
        command = [sys.executable, "-m", "benchmarks.forwarder", f"{folder}/app.sock", str(port)]
        gateway, _ = stack.enter_context(child(command, url))
        yield Side(f"forwarder to {app}", url, roots={"gateway": gateway.pid, "app": runner.pid})


@contextmanager
def litserve() -> Iterator[Side]:
    """LitServe's echo, one worker, from the peers' environment."""
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}/predict"
    command = [str(PEERS / "bin" / "python"), str(HERE / "apps" / "litserve_echo.py"), str(port)]
    with child(command, url) as (process, ready):
        yield Side("LitServe", url, roots={"all": process.pid}, ready_after=ready)


@contextmanager
def varvel(
    app: str, path: str = "/run/me/echo", environ: dict[str, str] | None = None
) -> Iterator[tuple[Side, Server]]:
    """Varvel with everything on: keys, records, billing, logs, metrics."""
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder) / "data", "--no-examples", environ={"VARVEL_RATE_LIMIT": "0", **(environ or {})})
        server.start()
        try:
            server.varvel("deploy", str(HERE / "apps" / f"{app}.py") + ":app", "--name", "echo")
            url = f"{server.url}{path}"
            headers = {"Authorization": f"Key {server.key}"}
            _await(f"{server.url}/run/me/echo", server.process, headers)
            yield Side(f"Varvel {app}", url, headers, {"tree": server.pid}), server
        finally:
            server.stop()
