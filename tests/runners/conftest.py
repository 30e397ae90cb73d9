"""A pool over real child processes, with a catalog and a log sink in memory."""

from __future__ import annotations

import asyncio
import json
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from varvel.apps.model import App, AppId, AppSpec, Revision, Scaling
from varvel.runners.model import RunnerState, Slot
from varvel.runners.pool import LocalPool
from varvel.settings import Settings
from varvel.telemetry.model import EventRow, RunnerRow

ECHO = """
async def app(scope, receive, send):
    assert scope["type"] == "http"
    body = b""
    more = True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-path", scope["path"].encode())]})
    await send({"type": "http.response.body", "body": body})
"""


@dataclass
class MemoryCatalog:
    """A `Catalog` in memory."""

    deployed: dict[AppId, App] = field(default_factory=dict)

    def get(self, app: AppId) -> App | None:
        return self.deployed.get(app)

    def revision(self, revision_id: str) -> Revision | None:
        current = (app.current for app in self.deployed.values())
        return next((revision for revision in current if revision.revision_id == revision_id), None)

    def apps(self, owner: str | None = None) -> list[App]:
        return [app for app in self.deployed.values() if owner in (None, app.app.owner)]

    async def revisions(self, app: AppId) -> list[Revision]:
        return [self.deployed[app].current]


@dataclass
class MemoryLogs:
    """A `LogSink` that keeps every line."""

    lines: list[dict[str, Any]] = field(default_factory=list)

    def take(self, **line: Any) -> int:
        self.lines.append(line)
        return len(self.lines)

    def messages(self, **wanted: str) -> list[str]:
        return [line["message"] for line in self.lines if all(line[name] == value for name, value in wanted.items())]


@dataclass
class World:
    """All that a test of the pool needs."""

    folder: Path
    settings: Settings
    catalog: MemoryCatalog = field(default_factory=MemoryCatalog)
    logs: MemoryLogs = field(default_factory=MemoryLogs)
    rows: list[EventRow | RunnerRow] = field(default_factory=list)
    pools: list[LocalPool] = field(default_factory=list)
    made: int = 0

    def revision(
        self, source: str, name: str = "app", kind: Any = "asgi", attribute: str = "app", **spec: Any
    ) -> Revision:
        """A revision of `me/<name>` whose only file is `source`. Scaling comes as `scaling`."""
        self.made += 1
        folder = self.folder / f"revision{self.made}"
        folder.mkdir()
        (folder / "app.py").write_text(textwrap.dedent(source))
        return Revision(
            revision_id=f"revision-{self.made}",
            app=AppId("me", name),
            spec=AppSpec(kind=kind, file="app.py", attribute=attribute, **spec),
            created_at=time.time(),
            folder=folder,
            python=Path(sys.executable),
        )

    def deploy(self, revision: Revision) -> AppId:
        self.catalog.deployed[revision.app] = App(
            app=revision.app,
            environment="main",
            current=revision,
            auth_mode="private",
            scaling=revision.spec.scaling,
            created_at=0.0,
            updated_at=0.0,
        )
        return revision.app

    def app(self, source: str, name: str = "app", kind: Any = "asgi", attribute: str = "app", **scaling: Any) -> AppId:
        """Deploy an app with this source."""
        scaling.setdefault("max_concurrency", 2)
        return self.deploy(self.revision(source, name, kind, attribute, scaling=Scaling(**scaling)))

    async def pool(self, **settings: Any) -> LocalPool:
        values = {name: getattr(self.settings, name) for name in ("data", "warm_parents", "fresh_idle")}
        pool = LocalPool(Settings(**{**values, **settings}), self.catalog, self.logs, self.rows.append, self.folder)
        await pool.start()
        self.pools.append(pool)
        return pool

    def categories(self) -> list[str]:
        return [row.category for row in self.rows if isinstance(row, EventRow)]

    def reasons(self, category: str) -> list[str]:
        """What the events of a category say why."""
        rows = [row for row in self.rows if isinstance(row, EventRow) and row.category == category]
        return [json.loads(row.payload)["reason"] for row in rows]

    def intervals(self) -> list[RunnerRow]:
        return [row for row in self.rows if isinstance(row, RunnerRow)]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path, Settings(data=tmp_path / "data", warm_parents=0))
    yield made
    for pool in made.pools:
        await pool.stop(0)
    assert not any(pool.runners() for pool in made.pools)


async def call(
    slot: Slot, path: bytes = b"/", body: bytes = b"", request_id: str = "", **headers: str
) -> tuple[int, bytes]:
    """Send one request in a slot, and read its answer."""
    sent = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    if request_id:
        sent += [(b"x-fal-request-id", request_id.encode()), (b"x-fal-endpoint", b"me/app")]
    response = await slot.send("POST", path, sent, body)
    return response.status, await response.read(1 << 24)


async def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait until something has become true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        await asyncio.sleep(0.01)


def states(pool: LocalPool, app: AppId | None = None) -> list[RunnerState]:
    return [runner.state for runner in pool.runners(app)]


Step = Callable[[], Awaitable[None]]
