"""The watching half of the Platform API over real parts: state, keys, queue, telemetry engine, and a listening socket.

Only runners are missing: apps stand in a catalog in memory, and the pool has what a test puts into it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import httpx
import uvicorn

from varvel import ids
from varvel.apps.model import App, AppId, AppSpec, Revision
from varvel.auth.keys import KeyStore
from varvel.billing.machines import machine_types
from varvel.egress import Egress
from varvel.metrics.meter import Meter
from varvel.platform import api, apps, drains, export, logs, metrics
from varvel.platform.parts import PlatformParts
from varvel.queue.model import AttemptResult, Job
from varvel.queue.scheduler import Scheduler
from varvel.queue.store import SqliteQueueStore
from varvel.runners.model import RunnerInfo, Slot, Trouble
from varvel.settings import Settings
from varvel.state.database import Database
from varvel.state.ledger import Ledger
from varvel.state.outbox import Outbox
from varvel.telemetry.service import Telemetry
from varvel.telemetry_export.drain_store import DrainStore
from varvel.telemetry_export.drains import LogDrains


def revision(app: AppId, number: int, **spec: Any) -> Revision:
    return Revision(
        revision_id=f"{app.name}-{number}",
        app=app,
        spec=AppSpec(kind="asgi", file="main.py", attribute="app", **spec),
        created_at=1_790_000_000.0 + number,
        folder=Path("/nowhere"),
        python=Path("/nowhere"),
        status="deployed",
        message=f"version {number}",
        deployed_by=app.owner,
    )


@dataclass
class Shelf:
    """Implements `Catalog` in memory."""

    kept: dict[AppId, App] = field(default_factory=dict)
    history: dict[AppId, list[Revision]] = field(default_factory=dict)

    def put(self, owner: str, name: str, environment: str = "main", **spec: Any) -> AppId:
        app = AppId(owner, name)
        current = revision(app, len(self.history.get(app, ())), **spec)
        self.history.setdefault(app, []).insert(0, current)
        self.kept[app] = App(
            app=app,
            environment=environment,
            current=current,
            auth_mode="private",
            scaling=current.spec.scaling,
            created_at=1_790_000_000.0,
            updated_at=1_790_000_000.0,
        )
        return app

    def get(self, app: AppId) -> App | None:
        return self.kept.get(app)

    def revision(self, revision_id: str) -> Revision | None:
        return next(
            (each for group in self.history.values() for each in group if each.revision_id == revision_id), None
        )

    def apps(self, owner: str | None = None) -> list[App]:
        return [app for app in self.kept.values() if owner in (None, app.app.owner)]

    async def revisions(self, app: AppId) -> list[Revision]:
        return list(self.history.get(app, ()))


@dataclass
class Idle:
    """Implements `Pool` without a place for anyone; `here` is what it shows."""

    here: list[RunnerInfo] = field(default_factory=list)

    def try_acquire(self, app: AppId, hint: str | None = None) -> Slot | None:
        return None

    async def acquire(self, app: AppId, hint: str | None = None, timeout: float | None = None) -> Slot:
        raise AssertionError("nothing runs here")

    def demand(self, app: AppId, waiting: int) -> None: ...
    def on_free(self, callback: Callable[[AppId], None]) -> None: ...
    def trouble(self, app: AppId) -> Trouble | None:
        return None

    def on_start_failed(self, callback: Callable[[AppId, Trouble], None]) -> None: ...
    def runners(self, app: AppId | None = None) -> list[RunnerInfo]:
        return [each for each in self.here if app in (None, each.app)]

    def in_flight(self, app: AppId) -> int:
        return sum(each.in_flight for each in self.runners(app))


async def _never(slot: Slot, job: Job, app: App) -> AttemptResult:
    raise AssertionError("nothing runs here")


@dataclass
class Watched:
    """A listening Platform API and what is behind it."""

    url: str
    parts: PlatformParts
    shelf: Shelf
    pool: Idle
    outbox: Outbox
    stack: AsyncExitStack

    @property
    def telemetry(self) -> Telemetry:
        return self.parts.telemetry

    async def owner(self, name: str) -> httpx.AsyncClient:
        """A new owner, and a client with an ADMIN key of theirs."""
        return self.client((await self.parts.keys.add_owner(name)).key)

    def client(self, key: str | None) -> httpx.AsyncClient:
        headers = {"Authorization": f"Key {key}"} if key else {}
        made = httpx.AsyncClient(base_url=f"{self.url}/v1", headers=headers, timeout=30)
        self.stack.push_async_callback(made.aclose)
        return made

    def say(self, app: str, message: str, **options: Any) -> int:
        """Take a log line."""
        line = {"revision": "rev-1", "job_id": "job-1", "level": "stdout", **options}
        return self.telemetry.take(app=app, message=message, **line)

    def job(self, app: AppId) -> Job:
        return Job(
            request_id=ids.uuid7(),
            app=app,
            endpoint_id=str(app),
            path="/",
            query=b"",
            method="POST",
            headers=[],
            body=b"{}",
            caller=app.owner,
            submitted_at=ids.now(),
        )


@asynccontextmanager
async def watching(folder: Path, **settings: Any) -> AsyncIterator[Watched]:
    """Start the parts in `folder`; what is there from an earlier time goes on."""
    async with AsyncExitStack() as stack:
        folder.mkdir(parents=True, exist_ok=True)
        chosen = Settings(**{"data": folder, "rate_limit": 0, "metrics_cache": 0.0, "egress_private": True, **settings})
        database = Database.open(folder / "state.db")
        stack.push_async_callback(database.close)
        outbox = Outbox(database)
        keys = KeyStore(database)
        await keys.start()
        telemetry = Telemetry(chosen, outbox)
        await telemetry.start()
        stack.push_async_callback(telemetry.stop)
        shelf, pool = Shelf(), Idle()
        scheduler = Scheduler(
            SqliteQueueStore(database, outbox, folder / "spill"), pool, shelf, _never, chosen, machine_types(chosen)
        )
        await scheduler.start()
        stack.push_async_callback(scheduler.stop, 1.0)
        egress = Egress(private=True)
        stack.push_async_callback(egress.close)
        log_drains = LogDrains(chosen, DrainStore(database, keys.secret("log-drains")), telemetry, egress)
        await log_drains.start()
        stack.push_async_callback(log_drains.stop)
        parts = PlatformParts(
            settings=chosen,
            authenticator=keys,
            keys=keys,
            catalog=shelf,
            scheduler=scheduler,
            pool=pool,
            telemetry=telemetry,
            ledger=Ledger(database, outbox),
            meter=Meter(),
            files=cast(Any, None),
            machines=machine_types(chosen),
            database=database,
            drains=log_drains,
        )
        url = await stack.enter_async_context(_listening(parts))
        yield Watched(url, parts, shelf, pool, outbox, stack)


@asynccontextmanager
async def _listening(parts: PlatformParts) -> AsyncIterator[str]:
    app = api.build(parts, [each.router(parts) for each in (logs, metrics, apps, export, drains)])
    # Asyncio leaves Nagle's delay on when it is not told that a stream is TCP.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
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
