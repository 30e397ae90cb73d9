"""The way of a log line: a time of its own, live readers at once, the store in batches, the spool while it is away.

Until it is in one of the two, it is in a file that outlives a killed server (`telemetry/ahead.py`), and is there
before any live reader has it: what was seen once is in the history for good.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import structlog

from varvel.errors import TelemetryUnavailable
from varvel.telemetry.ahead import WriteAhead
from varvel.telemetry.client import StoreClient
from varvel.telemetry.delivery import Rejects, deliver
from varvel.telemetry.model import REQUEST_LABEL, LogRow
from varvel.telemetry.spool import Spool, ts_of
from varvel.telemetry.tail import RequestLines, TailHub

log = structlog.get_logger(__name__)
SOON = 5_000
"""So many lines are sent without waiting for the period to end."""
BATCH = 25_000
MOST_IN_MEMORY = 50_000
"""Lines that wait behind a slow insert; beyond it they go to the spool."""
HURRY_GAP = 0.05
RETRY = 0.5
STOP_WAIT = 5.0
LABELS_KNOWN = 4096
LABELS = ("fal_app_name", "fal_app_id", REQUEST_LABEL, "fal_job_id", "fal_endpoint", "fal_source")
"""Of every line: `owner/name`, the revision, the request, the runner, the path, and who wrote it."""


class Logs:
    """Takes lines on the event loop (never blocks), delivers them from one task of its own."""

    def __init__(
        self,
        store: StoreClient,
        spool: Spool,
        rejects: Rejects,
        hub: TailHub,
        memory: RequestLines,
        ahead: WriteAhead,
        *,
        up: asyncio.Event,
        period: float,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._spool = spool
        self._rejects = rejects
        self._hub = hub
        self._memory = memory
        self._ahead = ahead
        self._up = up
        self._period = period
        self._clock = clock
        self._encode = msgspec.json.Encoder().encode
        newest = ts_of(ahead.left[-1]) if ahead.left else None
        self._last = max(spool.read_clock(), newest or 0)
        self._buffer: list[bytes] = []
        self._unsaved: list[bytes] = []
        self._loop = asyncio.get_running_loop()
        self._held: list[bytes] = []
        """Lines that neither the store nor the spool could take: the disk is full."""
        self._lost: Counter[tuple[str, str]] = Counter()
        self.lost = 0
        """Lines lost since the start, because neither the store nor the spool had room."""
        self._delivered = 0
        self._taken = 1 if spool or ahead.left else 0
        """Lines taken so far. What an earlier process took counts as one, so that barriers wait for it."""
        self._wanted = asyncio.Event()
        self._hurry = asyncio.Event()
        self._passed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self._known: dict[tuple[str, ...], dict[str, str]] = {}
        """Labels that many lines share, so that a line costs no new dictionary."""
        self._query_id = f"varvel-logs-{uuid.uuid4()}"

    @property
    def last_ts(self) -> int:
        """The time given to the newest line; every later line gets a greater one."""
        return self._last

    def floor(self, ts: int) -> None:
        """Give out only times after `ts`: the newest that the store has."""
        self._last = max(self._last, ts)

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
        labels: Mapping[str, str] | None = None,
        at: float | None = None,
    ) -> int:
        """Take one line and give its `ts`; see `LogSink`."""
        now = self._clock()
        ts = self._last = max(self._last + 1, int(min(at or now, now) * 1_000_000))
        if labels and not request_id:
            request_id = labels.get(REQUEST_LABEL, "")
        known = self._labels(app, revision, request_id, job_id, endpoint, source)
        row = LogRow(
            ts=ts,
            owner=app.partition("/")[0],
            app=app,
            revision=revision,
            job_id=job_id,
            request_id=request_id,
            endpoint=endpoint,
            level=level.lower(),
            source=source,
            message=message,
            labels={**labels, **known} if labels else known,
        )
        try:
            line = self._encode(row)
        except UnicodeEncodeError:
            row = _encodable(row)
            line = self._encode(row)
        self._taken += 1
        self._buffer.append(line)
        if not self._unsaved:
            # Before `publish`: the loop writes the line down before any reader has its turn.
            self._loop.call_soon(self._save)
        self._unsaved.append(line)
        if request_id:
            self._memory.add(row)
        self._hub.publish(row)
        self._wanted.set()
        if len(self._buffer) >= SOON:
            self._hurry.set()
        return ts

    def _save(self) -> None:
        lines, self._unsaved = self._unsaved, []
        self._ahead.write(lines, self._taken)

    def _labels(self, *key: str) -> dict[str, str]:
        if (found := self._known.get(key)) is None:
            if len(self._known) >= LABELS_KNOWN:
                self._known.clear()
            found = self._known[key] = {name: value for name, value in zip(LABELS, key, strict=True) if value}
        return found

    def start(self) -> None:
        """Begin to deliver, with what an earlier process left in the spool first."""
        self._wanted.set()
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Deliver or spool all lines taken so far, then end; what a hung store does not take in time is spooled."""
        if self._task is None:
            return
        self._stopping = True
        self._wanted.set()
        self._hurry.set()
        if not (await asyncio.wait({self._task}, timeout=STOP_WAIT))[0]:
            self._up.clear()
            self._task.cancel()
            await asyncio.wait({self._task})
        while self._buffer:
            await self._flush()
        held, self._held = self._held, []
        await self._to_spool(held)
        self._ahead.close()

    async def barrier(self) -> None:
        """Return when every line taken before this call is in the store. Raises `TelemetryUnavailable`."""
        wanted = self._taken
        while self._delivered < wanted:
            if not self._up.is_set():
                raise TelemetryUnavailable
            self._wanted.set()
            self._hurry.set()
            await asyncio.shield(self._passed)

    def went_down(self) -> None:
        """Let the barriers that wait know that the store is gone."""
        self._pass(TelemetryUnavailable())

    def _pass(self, problem: Exception | None = None) -> None:
        passed, self._passed = self._passed, asyncio.get_running_loop().create_future()
        if problem is None:
            passed.set_result(None)
        else:
            passed.set_exception(problem)
            passed.exception()  # nobody may be waiting

    async def _run(self) -> None:
        while not self._stopping:
            await self._wanted.wait()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), self._period)
            self._wanted.clear()
            self._hurry.clear()
            began = asyncio.get_running_loop().time()
            try:
                settled = await self._flush()
            except Exception as problem:  # a full disk, most likely: lines were counted as lost
                log.error("log lines cannot be kept", problem=str(problem))
                settled = False
            if settled:
                self._pass()
                await asyncio.sleep(max(0.0, began + HURRY_GAP - asyncio.get_running_loop().time()))
            else:
                self._wanted.set()
                if self._up.is_set():
                    self._hurry.set()
                else:
                    await asyncio.sleep(RETRY)

    async def _flush(self) -> bool:
        """One step: what waits goes to the store, or behind what is in the spool. False while the spool holds lines."""
        size = min(len(self._buffer), BATCH)
        if size:
            with contextlib.suppress(OSError):  # on a full disk only the guard against clock steps is weaker
                await asyncio.to_thread(self._spool.write_clock, self._last)
        batch, self._buffer = self._buffer[:size], self._buffer[size:]
        self._ahead.turn()
        if self._spool or not self._up.is_set():
            await self._to_spool(batch)
        elif batch:
            await self._insert(batch)
        if self._held and self._up.is_set() and await self._again(self._held):
            self._held = []
        self._ahead.settled(self._taken - len(self._buffer))
        if missed := self._ahead.take_missed():
            log.warning("log lines were not written down before they were delivered: no room", lines=missed)
        if self._ahead.left and self._up.is_set():
            await self._from_ahead()
        elif self._spool and self._up.is_set():
            await self._from_spool()
        if self._ahead.left or self._spool or not self._up.is_set():
            return False
        self._delivered = self._taken - len(self._buffer)
        self._say_lost()
        if self._buffer or self._held:
            self._wanted.set()
        return True

    async def _insert(self, batch: list[bytes]) -> None:
        inserting = asyncio.create_task(deliver(self._store, "logs", batch, self._rejects, self._query_id))
        try:
            while not (await asyncio.wait({inserting}, timeout=self._period))[0]:
                if len(self._buffer) > MOST_IN_MEMORY:
                    waiting, self._buffer = self._buffer, []
                    await self._to_spool(waiting)
            await inserting
        except asyncio.CancelledError:
            inserting.cancel()
            self._spool.append(batch)  # it may have arrived; the next start finds out
            raise
        except Exception as problem:
            log.warning("log lines go to the spool", lines=len(batch), problem=str(problem))
            await self._to_spool(batch)

    async def _to_spool(self, batch: list[bytes]) -> None:
        try:
            kept = await asyncio.to_thread(self._spool.append, batch)
        except OSError as problem:
            kept = self._hold(batch, problem)
        for line in batch[kept:]:
            row = msgspec.json.decode(line, type=LogRow)
            self._lost[row.app, row.source] += 1
            self.lost += 1

    def _hold(self, batch: list[bytes], problem: OSError) -> int:
        """Keep lines in memory until the disk has room again, within a bound; how many of them."""
        if not self._held:
            log.error("spool of log lines cannot be written", problem=str(problem))
        kept = 0 if self._stopping else max(0, MOST_IN_MEMORY - len(self._held))
        self._held += batch[:kept]
        return kept

    async def _from_ahead(self) -> None:
        """What a killed process took and did not deliver, into the store."""
        if await self._again(self._ahead.left):
            log.info("log lines of a server that was killed are in the store", lines=len(self._ahead.left))
            await asyncio.to_thread(self._ahead.forget)

    async def _from_spool(self) -> None:
        """The oldest file of the spool into the store."""
        if await self._again(await asyncio.to_thread(self._spool.oldest)):
            await asyncio.to_thread(self._spool.delete_oldest)

    async def _again(self, lines: list[bytes]) -> bool:
        """Deliver lines of which the store may have some: an insert was cut off. Whether it has all of them now."""
        try:
            await self._store.execute(f"KILL QUERY WHERE query_id = '{self._query_id}' SYNC")
            there = await self._there(lines)
            new = [line for line in lines if _identity(msgspec.json.decode(line)) not in there]
            for start in range(0, len(new), BATCH):
                await deliver(self._store, "logs", new[start : start + BATCH], self._rejects, self._query_id)
        except Exception as problem:
            log.warning("log lines wait for the store", lines=len(lines), problem=str(problem))
            await asyncio.sleep(RETRY)
            return False
        return True

    async def _there(self, lines: list[bytes]) -> set[tuple[int, str, str]]:
        times = [ts for line in lines if (ts := ts_of(line)) is not None]
        if not times:
            return set()
        sql = "SELECT ts, app, job_id FROM logs WHERE ts BETWEEN {first:Int64} AND {last:Int64}"
        rows = await self._store.select(sql, {"first": min(times), "last": max(times)})
        return {_identity(row) for row in rows}

    def _say_lost(self) -> None:
        lost, self._lost = self._lost, Counter()
        for (app, source), count in lost.items():
            message = f"{count} log lines were lost: the telemetry store was away and there was no room to keep them."
            self.take(app=app, revision="", job_id="", level="warning", message=message, source=source)


def _identity(row: Mapping[str, Any]) -> tuple[int, str, str]:
    # `ts` alone would do for one server; several may share a store.
    return row["ts"], row["app"], row["job_id"]


def _encodable(row: LogRow) -> LogRow:
    """The same line with what UTF-8 cannot hold (lone surrogates) replaced."""

    def clean(text: str) -> str:
        return text.encode("utf-8", "replace").decode()

    labels = {clean(key): clean(value) for key, value in row.labels.items()}
    texts = {name: clean(getattr(row, name)) for name in ("message", "request_id", "endpoint", "level", "job_id")}
    return msgspec.structs.replace(row, labels=labels, **texts)
