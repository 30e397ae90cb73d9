"""The telemetry room as the rest of the server sees it: a store to ask, a sink for log lines, a tail."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import structlog

from varvel.errors import TelemetryUnavailable, VarvelError
from varvel.settings import Settings
from varvel.telemetry.ahead import WriteAhead
from varvel.telemetry.client import Row, StoreClient
from varvel.telemetry.closing import close_asked, close_days, drop_replaced, is_due
from varvel.telemetry.delivery import Rejects
from varvel.telemetry.feeder import Feeder, Outgoing
from varvel.telemetry.logs import Logs
from varvel.telemetry.model import LogFilter, LogRow
from varvel.telemetry.retention import days_kept, drop_expired
from varvel.telemetry.schema import statements
from varvel.telemetry.spool import Spool
from varvel.telemetry.supervisor import Supervisor
from varvel.telemetry.tail import RequestLines, Subscription, TailHub

log = structlog.get_logger(__name__)
REMOTE_PING = 2.0
RETENTION_EVERY = 3600.0
CLOSE_EVERY = 300.0
CLOSE_GAP = 5.0
"""Least seconds between two rounds that readers ask for."""
MOST_ASKED = 10_000
"""Stretches that wait to be closed; more are not taken."""
SHORT_PATH = 100
"""Bytes that the path of a unix socket may have, nearly."""


class _ShortPath:
    """Where a unix socket can be bound: at the wanted path, or in a folder of its own when that is too long."""

    def __init__(self, wanted: Path) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="varvel-") if len(bytes(wanted)) > SHORT_PATH else None
        self.path = Path(self._folder.name) / wanted.name if self._folder else wanted

    def close(self) -> None:
        """Remove what was made for it."""
        self.path.unlink(missing_ok=True)
        if self._folder is not None:
            self._folder.cleanup()


class Telemetry:
    """`TelemetryStore` and `LogSink` in one. Build it inside the running event loop, then `await start()`.

    With `settings.telemetry_url` it speaks to that ClickHouse server, else it runs the embedded store in
    DIR/telemetry. While the store is away `select`, `stream` and `barrier` raise `TelemetryUnavailable`; log lines
    go to DIR/spool and records wait in the outbox.
    """

    def __init__(self, settings: Settings, outbox: Outgoing, *, clock: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._clock = clock
        data = settings.data
        data.mkdir(parents=True, exist_ok=True)
        self._up = asyncio.Event()
        self._short = _ShortPath(data / "telemetry.sock")
        socket = self._short.path
        self.client = StoreClient(settings.telemetry_url or socket, timeout=settings.query_timeout)
        self.rejects = Rejects(data / "telemetry-rejected.txt")
        self.hub = TailHub()
        self.spool = Spool(data / "spool", settings.log_spool)
        self._memory = RequestLines(
            lines=settings.tail_lines, each=max(1, settings.tail_lines // 10), began_ms=int(clock() * 1000)
        )
        period = settings.telemetry_flush
        self.logs = Logs(
            self.client,
            self.spool,
            self.rejects,
            self.hub,
            self._memory,
            WriteAhead(data / "spool", settings.log_ahead),
            up=self._up,
            period=period,
            clock=clock,
        )
        self.feeder = Feeder(
            outbox,
            self.client,
            self.rejects,
            up=self._up,
            period=settings.records_flush,
            limit=settings.telemetry_batch,
        )
        self.supervisor: Supervisor | None = None
        if not settings.telemetry_url:
            self.supervisor = Supervisor(
                folder=data / "telemetry",
                socket=socket,
                memory=settings.telemetry_memory,
                client=self.client,
                up=self._came_up,
                down=self._went_down,
            )
        self._tasks: list[asyncio.Task[None]] = []
        self._asked: dict[str, dict[int, int]] = {}
        self._close_now = asyncio.Event()

    @property
    def healthy(self) -> bool:
        """Whether the store answers."""
        return self._up.is_set()

    @property
    def last_ts(self) -> int:
        """`ts` of the newest log line taken, by this process or an earlier one; every later line has a greater one."""
        return self.logs.last_ts

    async def start(self) -> None:
        """Return when the store answers (the embedded one takes about a second) or turned out to be away.

        One that is away is waited for in the background; see `healthy`.
        """
        self.feeder.start()
        self.logs.start()
        self._tasks.append(asyncio.create_task(self._retain()))
        self._tasks.append(asyncio.create_task(self._close_days()))
        if self.supervisor is not None:
            await self.supervisor.start()
        else:
            await self._look()
            self._tasks.append(asyncio.create_task(self._watch()))

    async def stop(self) -> None:
        """Deliver what can be delivered, spool the other log lines, end the store. Call it after all who write."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.logs.stop()
        with contextlib.suppress(VarvelError, TimeoutError):
            await asyncio.wait_for(self.feeder.barrier(), 5)
        await self.feeder.stop()
        self._up.clear()
        if self.supervisor is not None:
            await self.supervisor.stop()
        await self.client.close()
        self._short.close()

    # TelemetryStore

    async def select(
        self, sql: str, params: Mapping[str, Any] | None = None, *, timeout: float | None = None
    ) -> list[Row]:
        """Rows of a query as dictionaries; see `StoreClient.select`. Raises `TelemetryUnavailable`."""
        self._check()
        return await self.client.select(sql, params, timeout=timeout)

    async def stream(self, sql: str, params: Mapping[str, Any] | None = None, *, format: str) -> AsyncIterator[bytes]:
        """Pieces of a result in a format such as Parquet, JSONEachRow or CSVWithNames."""
        self._check()
        async for piece in self.client.stream(sql, params, format=format):
            yield piece

    async def barrier(self) -> None:
        """Return when all that ended or was logged before this call is visible to `select`."""
        self._check()
        try:
            async with asyncio.timeout(self._settings.query_timeout):
                await asyncio.gather(self.feeder.barrier(), self.logs.barrier())
        except TimeoutError:
            raise TelemetryUnavailable("The telemetry store is behind; try again in a few seconds.") from None

    def _check(self) -> None:
        if not self._up.is_set():
            raise TelemetryUnavailable

    # LogSink and tail

    def take(
        self,
        *,
        app: str,
        revision: str,
        job_id: str,
        level: str,
        message: str,
        request_id: str = "",
        endpoint: str = "",
        source: str = "gateway",
        labels: dict[str, str] | None = None,
        at: float | None = None,
    ) -> int:
        """Take one log line and give its `ts`. Call it on the event loop; it never blocks."""
        return self.logs.take(
            app=app,
            revision=revision,
            job_id=job_id,
            level=level,
            message=message,
            request_id=request_id,
            endpoint=endpoint,
            source=source,
            labels=labels,
            at=at,
        )

    def tail(self, accept: LogFilter, size: int = 1000, *, apps: Iterable[str] | None = None) -> Subscription:
        """Follow the log lines from now on; see `TailHub.subscribe`. Close the subscription when done."""
        return self.hub.subscribe(accept, size, apps=apps)

    def end_tails(self) -> None:
        """End all that follow: the server stops. Lines are still taken, and delivered by `stop`."""
        self.hub.close()

    async def request_logs(self, request_id: str, after_ts: int = 0) -> list[LogRow]:
        """Lines of one request with a `ts` above `after_ts`, in order: from memory, else from the store."""
        if (rows := self._memory.get(request_id)) is not None:
            return [row for row in rows if row.ts > after_ts]
        self._check()
        await self.logs.barrier()
        found = await self.client.select(
            "SELECT * FROM logs WHERE request_id = {id:String} AND ts > {after:Int64} ORDER BY ts LIMIT {most:UInt32}",
            {"id": request_id, "after": after_ts, "most": self._settings.tail_lines},
        )
        return [msgspec.convert(row, LogRow) for row in found]

    # Coming and going of the store

    async def _came_up(self) -> None:
        for statement in statements():
            await self.client.execute(statement)
        newest = await self.client.select("SELECT max(ts) AS ts FROM logs")
        self.logs.floor(newest[0]["ts"])
        self._up.set()

    def _went_down(self) -> None:
        self._up.clear()
        self.feeder.went_down()
        self.logs.went_down()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(REMOTE_PING)
            await self._look()

    async def _look(self) -> None:
        answers = await self.client.ping()
        if answers and not self.healthy:
            try:
                await self._came_up()
            except VarvelError as problem:
                log.error("telemetry store cannot be prepared", problem=problem.message)
        elif not answers and self.healthy:
            log.warning("telemetry store does not answer")
            self._went_down()

    async def _retain(self) -> None:
        while True:
            await self._up.wait()
            try:
                await self.retain()
                await drop_replaced(self.client, self._clock())
            except VarvelError as problem:
                log.warning("old telemetry is not dropped", problem=problem.message)
            await asyncio.sleep(RETENTION_EVERY)

    async def _close_days(self) -> None:
        while True:
            await self._up.wait()
            self._close_now.clear()
            pause = CLOSE_GAP
            try:
                await self.close_stretches()
            except VarvelError as problem:
                log.warning("days are not closed: analytics reads their rows", problem=problem.message)
                pause = CLOSE_EVERY
            await asyncio.sleep(pause)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._close_now.wait(), CLOSE_EVERY - pause)

    async def close_stretches(self) -> None:
        """Close the UTC days that are over, and what was asked for with `keep_closed`."""
        asked, self._asked = self._asked, {}
        if closed := await close_days(self.client, self._clock()):
            log.info("days closed for analytics", days=len(closed))
        for step, stretches in asked.items():
            found = await close_asked(self.client, step, stretches, self._clock(), self._settings.analytics_calendars)
            if found:
                log.info("buckets closed for analytics", calendar=step, buckets=len(found))

    def keep_closed(self, step: str, stretches: Mapping[int, int]) -> None:
        """Have stretches of a calendar closed soon; see `TelemetryStore.keep_closed`."""
        now = self._clock()
        room = MOST_ASKED - sum(map(len, self._asked.values()))
        due = [(since, until) for since, until in stretches.items() if is_due(until, now)][: max(0, room)]
        if due and self._settings.analytics_calendars:
            self._asked.setdefault(step, {}).update(due)
            self._close_now.set()

    async def retain(self) -> list[tuple[str, str]]:
        """Drop the days that are older than the settings keep; gives `(table, partition)` of each."""
        dropped = await drop_expired(self.client, days_kept(self._settings), datetime.fromtimestamp(self._clock(), UTC))
        if dropped:
            log.info("old telemetry dropped", partitions=len(dropped))
        return dropped
