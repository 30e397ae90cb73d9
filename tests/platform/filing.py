"""Files, keys and meta of the Platform API on a real socket, with a real database and a real folder behind them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import httpx
import uvicorn
from starlette.types import ASGIApp

from varvel import ids
from varvel.auth.keys import KeyStore
from varvel.billing.machines import machine_types
from varvel.egress import Egress
from varvel.files.archive import ArchiveLimits
from varvel.files.folder import FolderStore
from varvel.platform import api, files, keys, meta
from varvel.platform.parts import PlatformParts
from varvel.settings import Settings
from varvel.state.database import Database


@dataclass
class Filing:
    """A listening server and what is behind it."""

    url: str
    parts: PlatformParts
    store: FolderStore
    folder: Path
    at: list[float]
    """The wall clock, in one place so that tests can move it."""
    stack: AsyncExitStack

    def client(self, key: str | None) -> httpx.AsyncClient:
        headers = {"Authorization": f"Key {key}"} if key else {}
        made = httpx.AsyncClient(base_url=f"{self.url}/v1", headers=headers, timeout=30)
        self.stack.push_async_callback(made.aclose)
        return made

    async def owner(self, name: str) -> httpx.AsyncClient:
        """A new owner, and a client with its ADMIN key."""
        return self.client((await self.parts.keys.add_owner(name)).key)


@asynccontextmanager
async def filing(folder: Path, **settings: Any) -> AsyncIterator[Filing]:
    """Start the parts in `folder`; what is there from an earlier time goes on."""
    async with AsyncExitStack() as stack:
        chosen = Settings(**{"data": folder, "rate_limit": 0, **settings})
        database = Database.open(folder / "state.db")
        stack.push_async_callback(database.close)
        at = [ids.now()]
        key_store = KeyStore(database, lambda: at[0])
        await key_store.start()
        limits = ArchiveLimits(files=chosen.unzip_files, bytes=chosen.unzip_bytes, ratio=chosen.unzip_ratio)
        store = FolderStore(folder / "files", database, limits=limits)
        await store.start()
        stack.push_async_callback(store.close)
        egress = Egress(private=chosen.egress_private)
        stack.push_async_callback(egress.close)
        parts = PlatformParts(
            settings=chosen,
            authenticator=key_store,
            keys=key_store,
            catalog=cast(Any, None),
            scheduler=cast(Any, None),
            pool=cast(Any, None),
            telemetry=cast(Any, None),
            ledger=cast(Any, None),
            meter=cast(Any, None),
            files=store,
            machines=machine_types(chosen),
            database=database,
            egress=egress,
            clock=lambda: at[0],
        )
        app = api.build(parts, [section.router(parts) for section in (files, keys, meta)])
        url = await stack.enter_async_context(listening(app))
        yield Filing(url, parts, store, folder / "files", at, stack)


@asynccontextmanager
async def listening(app: ASGIApp) -> AsyncIterator[str]:
    """`app` on a free port of this machine."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", ws="none", access_log=False))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = server.force_exit = True
        await serving
        listener.close()
