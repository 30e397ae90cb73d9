"""A gateway as it runs: real keys, queue, runners and sockets; the store of log lines is a list."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from varvel.apps.model import App, AppId, AppSpec, Revision, Scaling
from varvel.auth.keys import KeyStore
from varvel.billing.rules import MachineType
from varvel.egress import Egress
from varvel.gateway.app import Gateway
from varvel.gateway.app_uploads import variables
from varvel.gateway.attempt import Attempts
from varvel.gateway.webhooks import Signer, Webhooks
from varvel.http import Protocol
from varvel.ids import now, uuid7
from varvel.metrics.meter import Meter
from varvel.queue.scheduler import Scheduler
from varvel.queue.store import SqliteQueueStore
from varvel.runners.pool import LocalPool
from varvel.settings import Settings
from varvel.state.database import Database
from varvel.state.ledger import Ledger
from varvel.state.outbox import Outbox
from varvel.telemetry.model import LogRow

APPS = Path(__file__).parent / "apps.py"


class Lines:
    """A `LogSink` that remembers."""

    def __init__(self) -> None:
        self.rows: list[LogRow] = []

    def take(self, *, at: float | None = None, labels: dict[str, str] | None = None, **line: Any) -> int:
        ts = max(int((at or now()) * 1e6), self.rows[-1].ts + 1 if self.rows else 0)
        self.rows.append(LogRow(ts=ts, owner="me", labels=labels or {}, **line))
        return ts

    async def request_logs(self, request_id: str, after_ts: int = 0) -> list[LogRow]:
        return [row for row in self.rows if row.request_id == request_id and row.ts > after_ts]


class Apps:
    """A `Catalog` in memory."""

    def __init__(self) -> None:
        self.known: dict[AppId, App] = {}

    def get(self, app: AppId) -> App | None:
        return self.known.get(app)

    def revision(self, revision_id: str) -> Revision | None:
        return next((app.current for app in self.known.values() if app.current.revision_id == revision_id), None)

    def apps(self, owner: str | None = None) -> list[App]:
        return [app for app in self.known.values() if owner in (None, app.app.owner)]

    async def revisions(self, app: AppId) -> list[Revision]:
        return [self.known[app].current] if app in self.known else []

    def add(self, name: str, attribute: str, *, auth_mode: str = "private", **scaling: Any) -> AppId:
        """Deploy `attribute` of `apps.py` as `me/<name>`."""
        app = AppId("me", name)
        limits = replace(Scaling(keep_alive=30.0, max_multiplexing=4, termination_grace=1.0), **scaling)
        routes = ("/", "/sub", "/fail")
        spec = AppSpec(kind="asgi", file=APPS.name, attribute=attribute, scaling=limits, routes=routes)
        at = now()
        revision = Revision(
            revision_id=uuid7(), app=app, spec=spec, created_at=at, folder=APPS.parent, python=Path(sys.executable)
        )
        self.known[app] = App(
            app=app,
            environment="main",
            current=revision,
            auth_mode=auth_mode,  # type: ignore[arg-type]
            scaling=limits,
            created_at=at,
            updated_at=at,
        )
        return app


@dataclass
class Rig:
    """What a test needs to look at."""

    settings: Settings
    url: str
    apps: Apps
    database: Database
    outbox: Outbox
    lines: Lines
    pool: LocalPool
    scheduler: Scheduler
    webhooks: Webhooks
    meter: Meter
    keys: dict[str, str]
    clients: AsyncExitStack
    gateway: Gateway

    async def client(self, owner: str | None = "me", **options: Any) -> httpx.AsyncClient:
        """A client with the key of an owner, or without one."""
        headers = {"Authorization": f"Key {self.keys[owner]}"} if owner else {}
        made = httpx.AsyncClient(base_url=self.url, headers=headers, timeout=20, **options)
        return await self.clients.enter_async_context(made)

    async def rows(self, kind: str, request_id: str) -> list[dict[str, Any]]:
        """What the outbox holds of a request."""
        batches = await self.outbox.peek(kind, 1_000_000)
        found = [json.loads(line) for batch in batches for line in batch.body.splitlines()]
        return [row for row in found if row["request_id"] == request_id]

    async def record(self, request_id: str) -> dict[str, Any]:
        """The one record of a request, once it is there."""
        for _ in range(300):
            if found := await self.rows("requests", request_id):
                assert len(found) == 1
                return found[0]
            await asyncio.sleep(0.02)
        raise AssertionError("no record")


def machine(name: str) -> MachineType:
    return MachineType(name=name, cores=1, memory_bytes=1 << 30, price_second=0.0, multiplier=1.0)


@asynccontextmanager
async def rig(folder: Path, **changes: Any) -> AsyncIterator[Rig]:
    """A gateway on a free port."""
    settings = Settings(data=folder, max_runners=6, **changes)
    async with AsyncExitStack() as stack:
        database = Database.open(folder / "state.db")
        stack.push_async_callback(database.close)
        keys = KeyStore(database)
        await keys.start()
        new = [owner for owner in ("me", "other") if owner not in keys.owners()]
        secrets = {owner: (await keys.add_owner(owner)).key for owner in new}
        apps, lines, meter = Apps(), Lines(), Meter()
        outbox = Outbox(database)
        ledger = Ledger(database, outbox)
        app_secret = keys.secret("app uploads")
        pool = LocalPool(
            settings,
            apps,
            lines,
            lambda row: None,
            folder / "run",
            lend=lambda owner, sockets: variables(app_secret, owner, sockets),
        )
        store = SqliteQueueStore(database, outbox, folder / "spill")
        attempts = Attempts(settings)
        scheduler = Scheduler(store, pool, apps, attempts.run, settings, machine)
        egress = Egress(private=settings.egress_private)
        stack.push_async_callback(egress.close)
        webhooks = Webhooks(database, scheduler, Signer(keys.secret("webhooks")), egress)
        gateway = Gateway(
            settings,
            keys,
            apps,
            pool,
            scheduler,
            ledger,
            lines,
            meter,
            machine,
            attempts=attempts,
            webhooks=webhooks,
            secret=keys.secret,
        )
        await pool.start()
        stack.push_async_callback(pool.stop, 2.0)
        await scheduler.start()
        stack.push_async_callback(scheduler.stop, 0.0)
        await webhooks.start()
        stack.push_async_callback(webhooks.stop)
        await gateway.start(pool.sockets)
        stack.push_async_callback(gateway.stop)
        url = await stack.enter_async_context(listening(gateway))
        clients = await stack.enter_async_context(AsyncExitStack())
        yield Rig(
            settings, url, apps, database, outbox, lines, pool, scheduler, webhooks, meter, secrets, clients, gateway
        )


@asynccontextmanager
async def listening(app: Any, **tls: Any) -> AsyncIterator[str]:
    """An ASGI app on a free port; its URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        app,
        http=Protocol,
        lifespan="off",
        log_config=None,
        ws="websockets-sansio",
        timeout_graceful_shutdown=1,
        **tls,
    )
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        await asyncio.sleep(0.005)
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await serving
        listener.close()
