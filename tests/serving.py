"""A real server for tests: `varvel up` as a child process on free ports, stopped by its own process id."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parent.parent
VARVEL = [sys.executable, "-m", "varvel.cli.main"]


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [item.getsockname()[1] for item in sockets]
    for item in sockets:
        item.close()
    return ports


class Server:
    """One `varvel up`. Ports and data folder stay the same over restarts."""

    def __init__(self, data: Path, *arguments: str, environ: Mapping[str, str] | None = None) -> None:
        self.data = data
        self.port, self.tls_port = free_ports(2)
        self.url = f"http://127.0.0.1:{self.port}"
        self.tls = f"localhost:{self.tls_port}"
        self.ca = data / "tls" / "ca.pem"
        self.arguments = list(arguments)
        self.environ = {**os.environ, **(environ or {})}
        self.process: subprocess.Popen[str] | None = None
        self.stdout: list[str] = []
        self._reader: threading.Thread
        self.stderr_path = data.parent / f"{data.name}.stderr"

    def start(self, timeout: float = 60.0) -> Server:
        """Start and wait for the line that begins with `ready `."""
        command = [*VARVEL, "up", "--data", str(self.data), "--port", str(self.port), "--tls-port", str(self.tls_port)]
        with self.stderr_path.open("a") as stderr:
            self.process = subprocess.Popen(
                [*command, *self.arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env=self.environ,
                cwd=ROOT,
            )
        ready = threading.Event()
        self._reader = threading.Thread(target=self._read, args=(self.process, ready), daemon=True)
        self._reader.start()
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and self.process.poll() is None:
            if ready.wait(0.05):
                return self
        self.kill()
        raise AssertionError(f"the server did not become ready:\n{self.log()[-4000:]}")

    def _read(self, process: subprocess.Popen[str], ready: threading.Event) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.stdout.append(line)
            if line.startswith("ready "):
                ready.set()

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def key(self) -> str:
        """The ADMIN key of the owner `me`."""
        return (self.data / "admin.key").read_text().strip()

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Key {self.key}"}

    def client(self, **options: Any) -> httpx.Client:
        """A client with the ADMIN key."""
        return httpx.Client(**{"base_url": self.url, "headers": self.headers, "timeout": 60, **options})

    def log(self) -> str:
        return self.stderr_path.read_text() if self.stderr_path.exists() else ""

    def varvel(
        self, *arguments: str, check: bool = True, timeout: float = 120.0, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run the command line against this server."""
        environ = {**self.environ, "VARVEL_URL": self.url, "VARVEL_KEY": self.key}
        done = subprocess.run(
            [*VARVEL, *arguments], capture_output=True, text=True, env=environ, timeout=timeout, cwd=ROOT, input=stdin
        )
        if check and done.returncode != 0:
            raise AssertionError(f"varvel {' '.join(arguments)} ended {done.returncode}:\n{done.stdout}{done.stderr}")
        return done

    def stop(self, timeout: float = 30.0) -> int:
        """SIGTERM, and the exit status."""
        return self._end(signal.SIGTERM, timeout)

    def kill(self) -> int:
        """SIGKILL: nothing is said, nothing is closed."""
        return self._end(signal.SIGKILL, 10)

    def _end(self, number: signal.Signals, timeout: float) -> int:
        process = self.process
        if process is None:
            return 0
        process.send_signal(number)
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"the server did not end on {number.name}:\n{self.log()[-4000:]}") from None
        finally:
            self._reader.join(5)
            if process.stdout is not None:
                process.stdout.close()
            self.process = None
        return code


@contextmanager
def serving(data: Path, *arguments: str, environ: Mapping[str, str] | None = None) -> Iterator[Server]:
    """A started server that is stopped at the end of the block."""
    server = Server(data, *arguments, environ=environ)
    server.start()
    try:
        yield server
    finally:
        if server.process is not None:
            server.stop()
