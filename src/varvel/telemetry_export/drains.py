"""Log drains: an owner's lines, posted in order to a receiver of theirs as they come.

A drain reads from the store behind its position and moves on when the receiver has answered 2xx: each line at
least once, also over restarts of either side. After so many failures in a row it is switched off, and says why.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
from collections.abc import Callable
from typing import Any

import msgspec
import structlog

from varvel import ids
from varvel.egress import Egress, check_url
from varvel.errors import InvalidRequest, NotFound, TelemetryUnavailable, VarvelError
from varvel.logs.pages import oldest_first
from varvel.logs.rules import LogQuery, item
from varvel.settings import Settings
from varvel.telemetry.model import LogRow
from varvel.telemetry.service import Telemetry
from varvel.telemetry_export.drain_store import Drain, DrainStore, Kind

SECRET_LENGTH = 64
BATCH_LIMIT = 5000
STOPPING = 2.0
"""Seconds that a post has to be answered and noted when its drain stops: a line comes twice only if it has not."""
_log = structlog.get_logger("varvel.drains")


class PostFailed(VarvelError):
    """The receiver did not take the batch."""


def signature(secret: str, body: bytes) -> str:
    """Hexadecimal HMAC-SHA256 of the body, what `X-Fal-Signature` says."""
    return hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def message(drain: Drain, rows: list[LogRow]) -> tuple[bytes, dict[str, str]]:
    """Body and headers of a post: signed NDJSON, or what Datadog's intake takes."""
    if drain.kind == "datadog":
        body = msgspec.json.encode([_datadog(row) for row in rows])
        return body, {"Content-Type": "application/json", "DD-API-KEY": drain.secret}
    body = b"".join(msgspec.json.encode(item(row)) + b"\n" for row in rows)
    return body, {"Content-Type": "application/x-ndjson", "X-Fal-Signature": signature(drain.secret, body)}


def _datadog(row: LogRow) -> dict[str, Any]:
    shown = item(row)
    return {
        "ddsource": "varvel",
        "service": row.app,
        "status": row.level,
        "timestamp": row.ts // 1000,
        "message": row.message,
        "ddtags": ",".join(f"{key}:{value}" for key, value in sorted(shown["labels"].items())),
    }


class LogDrains:
    """All drains of a server. `start` after the telemetry service, `stop` before it."""

    def __init__(
        self,
        settings: Settings,
        store: DrainStore,
        telemetry: Telemetry,
        egress: Egress,
        clock: Callable[[], float] = ids.now,
    ) -> None:
        self._settings = settings
        self._store = store
        self._telemetry = telemetry
        self._egress = egress
        self._clock = clock
        self._drains: dict[str, Drain] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._posting: dict[str, asyncio.Lock] = {}

    async def start(self) -> None:
        """Go on with every active drain."""
        self._drains = {drain.drain_id: drain for drain in await self._store.all()}
        for drain in self._drains.values():
            self._begin(drain)

    async def stop(self) -> None:
        """Stop posting. What was not confirmed is posted again after the next start."""
        await asyncio.gather(*(self._end(drain_id) for drain_id in list(self._tasks)))

    def of(self, owner: str) -> list[Drain]:
        """The owner's drains, oldest first."""
        return [drain for drain in self._drains.values() if drain.owner == owner]

    def get(self, owner: str, drain_id: str) -> Drain:
        """Raises `NotFound`."""
        drain = self._drains.get(drain_id)
        if drain is None or drain.owner != owner:
            raise NotFound(f"There is no log drain {drain_id}")
        return drain

    async def create(self, owner: str, *, kind: Kind, url: str, secret: str, batch_size: int) -> Drain:
        """Begin to send lines that come from now on. Raises `InvalidRequest`, or `Conflict` if one is active."""
        if check_url(url).scheme != "https" and not self._settings.egress_private:
            raise InvalidRequest("url: must be https")
        if kind == "http" and len(secret) < SECRET_LENGTH:
            raise InvalidRequest(f"secret: takes {SECRET_LENGTH} characters at least")
        drain = Drain(
            drain_id=ids.uuid7(),
            owner=owner,
            kind=kind,
            url=url,
            secret=secret,
            batch_size=batch_size,
            created_at=self._clock(),
            position=self._telemetry.last_ts,
        )
        await self._store.add(drain)
        self._drains[drain.drain_id] = drain
        self._begin(drain)
        return drain

    async def activate(self, owner: str, drain_id: str, active: bool) -> Drain:
        """Switch a drain on, to go on where it stopped, or off. Raises `NotFound`, `Conflict`."""
        drain = self.get(owner, drain_id)
        await self._store.activate(drain_id, active)
        drain.active, drain.failures, drain.last_error = active, 0, None
        await self._end(drain_id)
        self._begin(drain)
        return drain

    async def delete(self, owner: str, drain_id: str) -> None:
        """Stop and forget a drain. Raises `NotFound`."""
        self.get(owner, drain_id)
        await self._end(drain_id)
        await self._store.delete(drain_id)
        self._drains.pop(drain_id, None)
        self._posting.pop(drain_id, None)

    def _begin(self, drain: Drain) -> None:
        if drain.active:
            self._posting.setdefault(drain.drain_id, asyncio.Lock())
            self._tasks[drain.drain_id] = asyncio.create_task(self._run(drain))

    async def _end(self, drain_id: str) -> None:
        task = self._tasks.pop(drain_id, None)
        if task is None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOPPING), self._posting[drain_id]:
                task.cancel()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def _run(self, drain: Drain) -> None:
        while drain.active:
            try:
                full = await self._step(drain)
            except TelemetryUnavailable:
                full = False
            except VarvelError as problem:
                await self._fail(drain, problem)
                full = False
            if not full and drain.active:
                await asyncio.sleep(self._settings.drain_interval * 2**drain.failures)

    async def _step(self, drain: Drain) -> bool:
        """Post one batch, if there is anything; whether there may be more right now."""
        fence = self._telemetry.last_ts
        if fence <= drain.position:
            return False
        await self._telemetry.barrier()
        rows: list[LogRow] = []
        async for row in oldest_first(self._telemetry, LogQuery(owner=drain.owner), drain.position + 1, fence + 1):
            rows.append(row)
            if len(rows) == drain.batch_size:
                break
        full = len(rows) == drain.batch_size
        if not rows:
            drain.position, drain.failures, drain.last_error = fence, 0, None
            return False
        async with self._posting[drain.drain_id]:
            await self._post(drain, rows)
            drain.last_sent_at = self._clock()
            drain.position = rows[-1].ts if full else fence
            drain.failures, drain.last_error = 0, None
            await self._store.sent(drain)
        return full

    async def _post(self, drain: Drain, rows: list[LogRow]) -> None:
        body, headers = message(drain, rows)
        timeout = self._settings.drain_timeout
        async with self._egress.request(
            "POST", drain.url, timeout=timeout, redirects=False, data=body, headers=headers
        ) as answer:
            if not 200 <= answer.status < 300:
                raise PostFailed(f"The receiver answered {answer.status}")

    async def _fail(self, drain: Drain, problem: VarvelError) -> None:
        drain.failures += 1
        drain.last_error = problem.message[:500]
        drain.active = drain.failures < self._settings.drain_failures
        _log.warning(
            "log drain failed",
            drain=drain.drain_id,
            failures=drain.failures,
            active=drain.active,
            error=drain.last_error,
        )
        await self._store.failed(drain)
