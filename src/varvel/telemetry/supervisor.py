"""Starts the embedded store, and starts it again when it dies or hangs."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog

from varvel.errors import TelemetryUnavailable, VarvelError
from varvel.telemetry.client import StoreClient

log = structlog.get_logger(__name__)
START_TIMEOUT = 60.0
PING_EVERY = 10.0
PINGS_MISSED = 3
LONGEST_PAUSE = 5.0


class Supervisor:
    """Owner of the engine's process. `up` is awaited each time that it answers, `down` called when it went."""

    def __init__(
        self,
        *,
        folder: Path,
        socket: Path,
        memory: int,
        client: StoreClient,
        up: Callable[[], Awaitable[None]],
        down: Callable[[], None],
    ) -> None:
        self._arguments = ["--data", str(folder), "--socket", str(socket), "--memory", str(memory)]
        self._client = client
        self._up = up
        self._down = down
        self._process: asyncio.subprocess.Process | None = None
        self._watch: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """Of the engine, while it runs."""
        return self._process.pid if self._process else None

    async def start(self) -> None:
        """Return when the engine answers, or did not come up at once: then it is tried again until it does."""
        try:
            await self._launch()
        except (TelemetryUnavailable, OSError) as problem:
            self._process = None
            log.error("telemetry store does not start", problem=str(problem))
        self._watch = asyncio.create_task(self._keep())

    async def stop(self, grace: float = 10.0) -> None:
        """End the engine: its queries are cancelled, what was inserted is on disk already."""
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
        if self._process is not None:
            await _end(self._process, grace)
            self._process = None

    async def _launch(self) -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # nothing in the folder where the server was started may shadow a module
            "-m",
            "varvel.telemetry.engine",
            *self._arguments,
            stdin=asyncio.subprocess.PIPE,  # never written; its end tells the engine that we are gone
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        self._process = process
        try:
            line = await asyncio.wait_for(process.stdout.readline(), START_TIMEOUT)
        except TimeoutError:
            line = b""
        if line != b"ready\n":
            await _end(process, 1.0)
            raise TelemetryUnavailable("The telemetry store did not start; its messages are on stderr.")
        try:
            await self._up()
        except VarvelError as problem:
            await _end(process, 1.0)
            raise TelemetryUnavailable(f"The telemetry store cannot be prepared: {problem.message}") from problem

    async def _keep(self) -> None:
        pause = 0.1
        while True:
            if self._process is not None:
                await self._until_gone(self._process)
                self._down()
                log.warning("telemetry store ended", status=self._process.returncode)
                self._process = None
            await asyncio.sleep(pause)
            try:
                await self._launch()
                log.info("telemetry store started again")
                pause = 0.1
            except (TelemetryUnavailable, OSError) as problem:
                self._process = None
                pause = min(pause * 2, LONGEST_PAUSE)
                log.error("telemetry store does not start", problem=str(problem), again_in=pause)

    async def _until_gone(self, process: asyncio.subprocess.Process) -> None:
        gone = asyncio.create_task(process.wait())
        missed = 0
        try:
            while not (await asyncio.wait({gone}, timeout=PING_EVERY))[0]:
                missed = 0 if await self._client.ping() else missed + 1
                if missed >= PINGS_MISSED and process.returncode is None:
                    log.error("telemetry store does not answer; it is killed")
                    process.kill()
        finally:
            gone.cancel()


async def _end(process: asyncio.subprocess.Process, grace: float) -> None:
    if process.stdin is not None:
        process.stdin.close()  # asks it to end
    try:
        await asyncio.wait_for(process.wait(), grace)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
