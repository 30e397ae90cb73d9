"""One real engine a module, and the rows that tests put into it."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from varvel.telemetry.client import StoreClient
from varvel.telemetry.schema import statements
from varvel.telemetry.supervisor import Supervisor


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder with a path short enough for unix sockets."""
    with tempfile.TemporaryDirectory(prefix="vt-") as name:
        yield Path(name)


class Engine:
    """A running engine and a client of it."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "engine.sock"
        self.client = StoreClient(self.socket, timeout=20)
        self.up = asyncio.Event()
        self.supervisor = Supervisor(
            folder=folder / "store",
            socket=self.socket,
            memory=1024**3,
            client=self.client,
            up=self._came_up,
            down=self.up.clear,
        )

    async def _came_up(self) -> None:
        for statement in statements():
            await self.client.execute(statement)
        self.up.set()

    async def close(self) -> None:
        await self.supervisor.stop()
        await self.client.close()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def engine(folder: Path) -> AsyncIterator[Engine]:
    made = Engine(folder)
    await made.supervisor.start()
    yield made
    await made.close()
