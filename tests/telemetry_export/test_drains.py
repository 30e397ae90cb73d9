"""Log drains against a receiver that listens, fails, and comes back."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from aiohttp import web
from tests.watching import Watched, watching

from varvel.telemetry.model import LogRow
from varvel.telemetry_export.drain_store import Drain
from varvel.telemetry_export.drains import message

pytestmark = pytest.mark.asyncio(loop_scope="module")
SECRET = "s" * 64


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def watched(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Watched]:
    """One server for the whole file; each test has owners of its own."""
    folder = tmp_path_factory.mktemp("drains")
    async with watching(folder, drain_interval=0.02, drain_failures=3) as made:
        yield made


@dataclass
class Receiver:
    url: str = ""
    status: int = 200
    calls: int = 0
    lines: list[dict[str, Any]] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    async def take(self, request: web.Request) -> web.Response:
        self.calls += 1
        body = await request.read()
        assert request.headers["X-Fal-Signature"] == hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
        assert request.headers["Content-Type"] == "application/x-ndjson"
        if self.status == 200:
            rows = [json.loads(line) for line in body.splitlines()]
            self.lines += rows
            self.sizes.append(len(rows))
        return web.Response(status=self.status)

    @property
    def messages(self) -> list[str]:
        return [line["message"] for line in self.lines]


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    app = web.Application()
    app.router.add_post("/", receiver.take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
    try:
        yield receiver
    finally:
        await runner.cleanup()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def create(client: httpx.AsyncClient, url: str, **more: Any) -> dict[str, Any]:
    answer = await client.post("/serverless/log-drains", json={"url": url, "secret": SECRET, **more})
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def test_new_lines_are_posted_in_order_signed_and_in_batches(watched: Watched) -> None:
    me = await watched.owner("order")
    watched.say("order/a", "from before")
    async with receiving() as receiver:
        made = await create(me, receiver.url, batch_size=10)
        assert "secret" not in made
        for number in range(25):
            watched.say("order/a", f"line {number}")
            watched.say("somebody/else", "not theirs")
        await until(lambda: len(receiver.lines) >= 25)
        assert receiver.messages == [f"line {number}" for number in range(25)]
        assert max(receiver.sizes) <= 10
        assert receiver.lines[0]["labels"]["fal_job_id"] == "job-1"
        assert (await me.delete(f"/serverless/log-drains/{made['drain_id']}")).status_code == 204
        watched.say("order/a", "after")
        await asyncio.sleep(0.1)
        assert len(receiver.lines) == 25


async def test_a_drain_goes_on_where_it_was_after_a_restart_of_the_server(tmp_path: Path) -> None:
    async with receiving() as receiver:
        async with watching(tmp_path, drain_interval=0.02) as before:
            me = await before.owner("me")
            await create(me, receiver.url)
            before.say("me/a", "one")
            await until(lambda: receiver.messages == ["one"])
            await before.parts.drains.stop()  # type: ignore[union-attr]
            before.say("me/a", "two")
        async with watching(tmp_path, drain_interval=0.02) as after:
            after.say("me/a", "three")
            await until(lambda: len(receiver.lines) >= 3)
    assert receiver.messages == ["one", "two", "three"]


async def test_a_drain_that_keeps_failing_is_switched_off_and_loses_nothing_when_switched_on(watched: Watched) -> None:
    me = await watched.owner("failing")
    async with receiving() as receiver:
        receiver.status = 500
        made = await create(me, receiver.url)
        watched.say("failing/a", "kept")

        async def shown() -> dict[str, Any]:
            (drain,) = (await me.get("/serverless/log-drains")).json()["drains"]
            return dict(drain)

        async with asyncio.timeout(10):
            while (await shown())["active"]:
                await asyncio.sleep(0.02)
        state = await shown()
        assert (state["failures"], state["last_error"]) == (3, "The receiver answered 500")
        assert receiver.calls == 3
        receiver.status = 200
        watched.say("failing/a", "and this")
        path = f"/serverless/log-drains/{made['drain_id']}"
        assert (await me.patch(path, json={"active": True})).json()["active"] is True
        await until(lambda: receiver.messages == ["kept", "and this"])
        assert (await shown())["failures"] == 0
        assert (await me.patch(path, json={"active": False})).json()["active"] is False


async def test_an_account_has_one_active_drain_and_sees_only_its_own(watched: Watched) -> None:
    me, you = await watched.owner("one"), await watched.owner("two")
    made = await create(me, "http://127.0.0.1:9/")
    second = await me.post("/serverless/log-drains", json={"url": "http://127.0.0.1:9/", "secret": SECRET})
    assert (second.status_code, second.json()["error"]["type"]) == (400, "validation_error")
    path = f"/serverless/log-drains/{made['drain_id']}"
    assert (await you.get("/serverless/log-drains")).json() == {"drains": []}
    assert (await you.delete(path)).status_code == 404
    assert (await you.patch(path, json={"active": False})).status_code == 404
    reader = watched.client((await watched.parts.keys.create("one", "reader")).key)
    assert (await reader.get("/serverless/log-drains")).status_code == 403
    assert (await me.delete(path)).status_code == 204


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"url": "http://127.0.0.1/"},
        {"url": "ftp://127.0.0.1/", "secret": SECRET},
        {"url": "https://127.0.0.1/", "secret": "short"},
        {"url": "https://", "secret": SECRET},
        {"url": "https:///path", "secret": SECRET},
        {"url": "https://127.0.0.1:99999/", "secret": SECRET},
        {"url": "http://127.0.0.1/", "secret": SECRET, "batch_size": 5001},
        {"url": "http://127.0.0.1/", "secret": SECRET, "type": "syslog"},
        {"url": "http://127.0.0.1/", "secret": SECRET, "more": 1},
    ],
    ids=str,
)
async def test_a_drain_that_cannot_be_is_refused(watched: Watched, wrong: dict[str, Any]) -> None:
    me = watched.client((await watched.parts.keys.create("order", "bad", "ADMIN")).key)
    answer = await me.post("/serverless/log-drains", json=wrong)
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "validation_error")


async def test_without_private_egress_only_https_is_taken(tmp_path: Path) -> None:
    async with watching(tmp_path, egress_private=False) as watched:
        me = await watched.owner("me")
        answer = await me.post("/serverless/log-drains", json={"url": "http://example.invalid/", "secret": SECRET})
        assert answer.status_code == 400
        assert "https" in answer.json()["error"]["message"]


async def test_the_secret_is_not_readable_in_the_database(watched: Watched) -> None:
    me = await watched.owner("sealed")
    made = await create(me, "http://127.0.0.1:9/")
    (kept,) = await watched.parts.database.read(
        lambda db: db.execute("SELECT secret FROM log_drains WHERE drain_id = ?", (made["drain_id"],)).fetchone()
    )
    assert SECRET.encode() not in bytes(kept)
    assert (await me.delete(f"/serverless/log-drains/{made['drain_id']}")).status_code == 204


async def test_datadog_gets_its_own_form() -> None:
    drain = Drain(
        drain_id="d",
        owner="me",
        kind="datadog",
        url="https://intake",
        secret="api-key",
        batch_size=1,
        created_at=0.0,
        position=0,
    )
    row = LogRow(
        ts=1_790_000_000_123_456,
        owner="me",
        app="me/a",
        revision="r",
        job_id="j",
        level="error",
        message="boom",
        labels={"fal_job_id": "j"},
    )
    body, headers = message(drain, [row])
    assert headers["DD-API-KEY"] == "api-key"
    (sent,) = json.loads(body)
    assert sent["service"] == "me/a"
    assert (sent["status"], sent["message"], sent["ddtags"]) == ("error", "boom", "fal_job_id:j")
    assert sent["timestamp"] == 1_790_000_000_123
