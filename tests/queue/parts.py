"""Real parts around the scheduler, and an in-memory pool whose runners are functions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from varvel.apps.model import App, AppId, AppSpec, Revision
from varvel.billing.rules import MachineType
from varvel.ids import now, uuid7
from varvel.queue.model import AttemptResult, Headers, Job, Outcome
from varvel.queue.scheduler import Scheduler
from varvel.queue.store import SqliteQueueStore
from varvel.runners.model import RunnerInfo, RunnerResponse, Slot, Trouble
from varvel.settings import Settings
from varvel.state.database import Database
from varvel.state.outbox import Outbox

ECHO = AppId("me", "echo")
OTHER = AppId("me", "other")


MACHINE = MachineType(name="S", cores=1, memory_bytes=1, price_second=0.1, multiplier=1)


def machine(name: str) -> MachineType:
    return MACHINE


def job(app: AppId = ECHO, **given: Any) -> Job:
    values: dict[str, Any] = {
        "request_id": uuid7(),
        "app": app,
        "endpoint_id": str(app),
        "path": "/",
        "query": b"",
        "method": "POST",
        "headers": [(b"content-type", b"application/json")],
        "body": b'{"a": 1}',
        "caller": "me",
        "submitted_at": now(),
    }
    return Job(**{**values, **given})


def outcome(status: int = 200, body: bytes = b'{"ok": true}', **given: Any) -> Outcome:
    values: dict[str, Any] = {
        "headers": [(b"content-type", b"application/json")],
        "runner_id": "r1",
        "revision": "v1",
        "machine_type": "S",
        "started_at": now(),
        "ended_at": now(),
    }
    return Outcome(status=status, body=body, **{**values, **given})


@dataclass
class MemorySlot:
    pool: MemoryPool
    app: AppId
    runner_id: str = "r1"
    revision_id: str = "v1"
    machine_type: str = "S"
    socket: str = ""
    cold_boot: float = 0.0
    released: bool = False

    async def send(
        self, method: str, target: bytes, headers: Headers, body: bytes | AsyncIterator[bytes]
    ) -> RunnerResponse:
        raise NotImplementedError

    def release(self, *, kill: bool = False, health_check: bool = False, hints: list[str] | None = None) -> None:
        assert not self.released, "released twice"
        self.released = True
        self.pool.give_back(self.app)


@dataclass
class MemoryPool:
    """`slots` free places for each app."""

    slots: int = 1
    used: dict[AppId, int] = field(default_factory=dict)
    waiting: dict[AppId, int] = field(default_factory=dict)
    callbacks: list[Callable[[AppId], None]] = field(default_factory=list)

    def try_acquire(self, app: AppId, hint: str | None = None) -> Slot | None:
        if self.used.get(app, 0) >= self.slots:
            return None
        self.used[app] = self.used.get(app, 0) + 1
        return MemorySlot(self, app)

    def give_back(self, app: AppId) -> None:
        self.used[app] -= 1
        self.free(app)

    def free(self, app: AppId) -> None:
        for callback in self.callbacks:
            callback(app)

    async def acquire(self, app: AppId, hint: str | None = None, timeout: float | None = None) -> Slot:
        raise NotImplementedError

    def demand(self, app: AppId, waiting: int) -> None:
        self.waiting[app] = waiting

    def on_free(self, callback: Callable[[AppId], None]) -> None:
        self.callbacks.append(callback)

    def on_start_failed(self, callback: Callable[[AppId, Trouble], None]) -> None: ...

    def trouble(self, app: AppId) -> Trouble | None:
        return None

    def runners(self, app: AppId | None = None) -> list[RunnerInfo]:
        return []

    def in_flight(self, app: AppId) -> int:
        return self.used.get(app, 0)


@dataclass
class MemoryCatalog:
    deployed: dict[AppId, App] = field(default_factory=dict)

    def deploy(self, app: AppId, **given: Any) -> None:
        spec = AppSpec(kind="asgi", file="app.py", attribute="app", **given)
        revision = Revision(
            revision_id="v1", app=app, spec=spec, created_at=0, folder=Path(), python=Path(), status="deployed"
        )
        self.deployed[app] = App(
            app=app,
            environment="main",
            current=revision,
            auth_mode="private",
            scaling=spec.scaling,
            created_at=0,
            updated_at=0,
        )

    def get(self, app: AppId) -> App | None:
        return self.deployed.get(app)

    def revision(self, revision_id: str) -> Revision | None:
        return None

    def apps(self, owner: str | None = None) -> list[App]:
        return []

    async def revisions(self, app: AppId) -> list[Revision]:
        return []


Serve = Callable[[Job], Awaitable[AttemptResult]]


async def answer_ok(job: Job) -> AttemptResult:
    return AttemptResult(outcome=outcome())


@dataclass
class Parts:
    """A queue on a folder; what the app does is `serve`, which tests replace."""

    folder: Path
    serve: Serve = answer_ok
    slots: int = 1
    settings: dict[str, Any] = field(default_factory=dict)
    clock: Callable[[], float] = now
    pool: MemoryPool = field(init=False)
    catalog: MemoryCatalog = field(default_factory=MemoryCatalog)
    database: Database = field(init=False)
    outbox: Outbox = field(init=False)
    store: SqliteQueueStore = field(init=False)
    scheduler: Scheduler = field(init=False)
    ran: list[str] = field(default_factory=list)

    async def start(self) -> None:
        self.pool = MemoryPool(self.slots)
        if not self.catalog.deployed:
            self.catalog.deploy(ECHO)
            self.catalog.deploy(OTHER)
        self.database = Database.open(self.folder / "state.db")
        self.outbox = Outbox(self.database)
        self.store = SqliteQueueStore(self.database, self.outbox, self.folder / "spill")
        settings = Settings(data=self.folder, **{"retry_backoff": 0.0, **self.settings})
        self.scheduler = Scheduler(
            self.store, self.pool, self.catalog, self._attempt, settings, machine, clock=self.clock
        )
        await self.scheduler.start()

    async def stop(self, grace: float = 0.0) -> None:
        await self.scheduler.stop(grace)
        await self.database.close()

    async def restart(self, grace: float = 0.0) -> None:
        await self.stop(grace)
        await self.start()

    async def _attempt(self, slot: Slot, job: Job, app: App) -> AttemptResult:
        self.ran.append(job.request_id)
        try:
            return await self.serve(job)
        finally:
            slot.release()

    async def ended(self, request_id: str) -> Outcome:
        """The outcome of a request, once it has one."""
        async with asyncio.timeout(20):
            async for status in self.scheduler.watch(request_id):
                if status.outcome is not None:
                    return status.outcome
        raise AssertionError(f"{request_id} is unknown")


@asynccontextmanager
async def parts(folder: Path, **given: Any) -> AsyncIterator[Parts]:
    made = Parts(folder, **given)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()
