"""A real telemetry engine for the sections of the Platform API, and servers of them over one store.

Rows are put straight into the store; each test has owners of its own, so that tests share the engine.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import msgspec
import pytest
from fastapi import FastAPI

from varvel import ids
from varvel.auth.keys import KeyStore
from varvel.billing.machines import machine_types
from varvel.platform import account, analytics, api, focus, requests, usage
from varvel.platform.parts import PlatformParts
from varvel.settings import Settings
from varvel.state.database import Database
from varvel.telemetry.client import StoreClient
from varvel.telemetry.schema import statements

SECTIONS = (account, analytics, focus, requests, usage)


class Store(StoreClient):
    """The store without the server's feeder: what a test inserts is visible at once."""

    def __init__(self, target: Path | str, *, timeout: float = 30.0) -> None:
        super().__init__(target, timeout=timeout)
        self.asked: dict[str, dict[int, int]] = {}

    async def barrier(self) -> None:
        """Nothing is on its way."""

    def keep_closed(self, step: str, stretches: Mapping[int, int]) -> None:
        """Remember what the server would close in the background."""
        self.asked.setdefault(step, {}).update(stretches)

    async def put(self, table: str, *rows: msgspec.Struct) -> None:
        """Insert rows of `telemetry/model.py`."""
        await self.insert(table, b"\n".join(msgspec.json.encode(row) for row in rows))


@pytest.fixture(scope="session")
def engine_socket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("store")
    socket = folder / "s"
    arguments = ["--data", str(folder / "data"), "--socket", str(socket), "--memory", str(1024**3)]
    engine = subprocess.Popen(
        [sys.executable, "-m", "varvel.telemetry.engine", *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert engine.stdin is not None
    assert engine.stdout is not None
    try:
        assert engine.stdout.readline() == b"ready\n"
        yield socket
    finally:
        engine.stdin.close()
        engine.terminate()
        engine.wait(20)
        engine.stdout.close()


@pytest.fixture
async def store(engine_socket: Path) -> AsyncIterator[Store]:
    client = Store(engine_socket)
    prepared = engine_socket.with_name("prepared")
    if not prepared.exists():
        for statement in statements():
            await client.execute(statement)
        prepared.touch()
    yield client
    await client.close()


@dataclass
class Account:
    """An owner with a client for each scope of key."""

    name: str
    api: httpx.AsyncClient
    admin: httpx.AsyncClient


@dataclass
class Served:
    """The Platform API over a store, on a clock that tests set."""

    app: FastAPI
    parts: PlatformParts
    at: list[float]
    add: Callable[[str], Awaitable[Account]] = field(repr=False)

    @property
    def now(self) -> float:
        return self.at[0]

    @now.setter
    def now(self, seconds: float) -> None:
        self.at[0] = seconds


@pytest.fixture
async def served(store: Store, tmp_path: Path) -> AsyncIterator[Served]:
    async with AsyncExitStack() as stack:
        database = Database.open(tmp_path / "state.db")
        stack.push_async_callback(database.close)
        keys = KeyStore(database)
        await keys.start()
        settings = Settings(data=tmp_path, rate_limit=0)
        at = [ids.now()]
        parts = PlatformParts(
            settings=settings,
            authenticator=keys,
            keys=keys,
            catalog=cast(Any, SimpleNamespace(get=lambda app: None, apps=lambda owner=None: [])),
            scheduler=cast(Any, None),
            pool=cast(Any, None),
            telemetry=cast(Any, store),
            ledger=cast(Any, None),
            meter=cast(Any, None),
            files=cast(Any, None),
            machines=machine_types(settings),
            database=database,
            clock=lambda: at[0],
        )
        # Only the sections that need nothing but the stores: the others have tests of their own.
        app = api.build(parts, [section.router(parts) for section in SECTIONS])

        def client(key: str) -> httpx.AsyncClient:
            made = httpx.AsyncClient(
                transport=httpx.ASGITransport(app),
                base_url="http://varvel/v1",
                headers={"Authorization": f"Key {key}"},
            )
            stack.push_async_callback(made.aclose)
            return made

        async def add(name: str) -> Account:
            admin = await keys.add_owner(name)
            api = await keys.create(name, "test")
            return Account(name, client(api.key), client(admin.key))

        yield Served(app, parts, at, add)
