"""Carries the outbox of the state database into the store: at least once over the wire, exactly once in the store.

A batch is deleted from the outbox after its insert returned. One whose insert failed, and whatever lay in the
outbox when this process began, may be in the store already: it is compared with the store by id before it is
inserted, and the rollups of its days are made anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
import structlog

from varvel.errors import TelemetryUnavailable, VarvelError
from varvel.telemetry.client import StoreClient, quote
from varvel.telemetry.delivery import Rejects, deliver
from varvel.telemetry.model import OutboxRows
from varvel.telemetry.rollup import ROLLUPS, days_of, rebuild

log = structlog.get_logger(__name__)
RETRY_LONGEST = 5.0
HURRY_GAP = 0.05
"""Least seconds between two passes that barriers ask for, so that pages read in a row do not make tiny parts."""
IDS_AT_ONCE = 5_000


@dataclass(frozen=True, slots=True)
class Kind:
    """What the feeder knows of a table: its id, and the time by which it is kept in order."""

    table: str
    key: str
    time: str
    most: int = 1_000_000
    """Rows in one insert, where rows can be large."""


CHAINS: tuple[tuple[Kind, ...], ...] = (
    # A billing event never comes before the request that it bills.
    (Kind("requests", "request_id", "ended_at"), Kind("billing", "request_id", "ended_at")),
    (Kind("payloads", "request_id", "ended_at", 1000),),
    (Kind("events", "event_id", "created_at"), Kind("runner_states", "row_id", "since")),
)


class Outgoing(Protocol):
    """What the feeder needs of the outbox."""

    async def peek(self, kind: str, limit_rows: int) -> Sequence[OutboxRows]:
        """The oldest batches of a kind."""

    async def delete(self, seqs: Sequence[int]) -> None:
        """Forget delivered batches; also a fence: what was written before is committed when it returns."""

    def last_seq(self) -> int:
        """Number of the last committed batch."""

    def on_added(self, callback: Callable[[], None]) -> None:
        """Have `callback` called after each commit that added rows."""


class Feeder:
    """One pass at a time: every `period` seconds while there are rows, or at once when a barrier waits."""

    def __init__(
        self, outbox: Outgoing, store: StoreClient, rejects: Rejects, *, up: asyncio.Event, period: float, limit: int
    ) -> None:
        self._outbox = outbox
        self._store = store
        self._rejects = rejects
        self._up = up
        self._period = period
        self._limit = limit
        self._wanted = asyncio.Event()
        self._hurry = asyncio.Event()
        self._passed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._fed = 0
        self._task: asyncio.Task[None] | None = None
        self.uncertain = {kind.table: outbox.last_seq() for chain in CHAINS for kind in chain}
        """Batches up to this `seq` may be in the store already."""
        outbox.on_added(self._wanted.set)

    def start(self) -> None:
        """Begin with what an earlier process left."""
        self._wanted.set()
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """End without delivering more; what is left stays in the outbox."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def barrier(self) -> None:
        """Return when all rows that were written before this call are in the store.

        Raises `TelemetryUnavailable` when the pass that should bring them there fails.
        """
        with contextlib.suppress(VarvelError):  # a full disk must not keep old records from being read
            await self._outbox.delete([])
        wanted = self._outbox.last_seq()
        while self._fed < wanted:
            if not self._up.is_set():
                raise TelemetryUnavailable
            self._wanted.set()  # a pass that is under way may have begun before our rows: there must be one after it
            self._hurry.set()
            await asyncio.shield(self._passed)

    def went_down(self) -> None:
        """Let the barriers that wait know that the store is gone."""
        _fail(self._passed)

    async def _run(self) -> None:
        pause = self._period
        while True:
            await self._next_turn()
            began = asyncio.get_running_loop().time()
            target = self._outbox.last_seq()
            passed, self._passed = self._passed, asyncio.get_running_loop().create_future()
            ends = await asyncio.gather(*(self._chain(chain, target) for chain in CHAINS), return_exceptions=True)
            if problems := [end for end in ends if end is not None]:
                _fail(passed)
                pause = min(pause * 2, RETRY_LONGEST)
                log.warning("records wait in the outbox", problem=str(problems[0]), again_in=pause)
                self._wanted.set()
                await asyncio.sleep(pause)
                continue
            pause = self._period
            self._fed = target
            if not passed.done():
                passed.set_result(None)
            await asyncio.sleep(max(0.0, began + HURRY_GAP - asyncio.get_running_loop().time()))

    async def _next_turn(self) -> None:
        await self._wanted.wait()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._hurry.wait(), self._period)
        await self._up.wait()
        self._wanted.clear()
        self._hurry.clear()

    async def _chain(self, chain: tuple[Kind, ...], target: int) -> None:
        for kind in chain:
            while batches := await self._outbox.peek(kind.table, min(self._limit, kind.most)):
                await self._batch(kind, batches)
                if batches[-1].seq >= target:
                    break

    async def _batch(self, kind: Kind, batches: Sequence[OutboxRows]) -> None:
        doubtful = batches[0].seq <= self.uncertain[kind.table]
        bodies = [batch.body for batch in batches]
        query_id = f"varvel-feed-{kind.table}-{uuid.uuid4()}"
        try:
            if doubtful:
                await self._reconcile(kind, bodies, query_id)
            else:
                await deliver(self._store, kind.table, bodies, self._rejects, query_id)
            await self._outbox.delete([batch.seq for batch in batches])
        except BaseException:
            self.uncertain[kind.table] = max(self.uncertain[kind.table], batches[-1].seq)
            raise

    async def _reconcile(self, kind: Kind, bodies: list[bytes], query_id: str) -> None:
        # An insert of ours that still runs in the store would land after we looked.
        await self._store.execute(f"KILL QUERY WHERE query_id LIKE 'varvel-feed-{kind.table}-%' SYNC")
        rows = await asyncio.to_thread(_parsed, bodies)
        there = await self._there(kind, [row for _, row in rows])
        new = {row[kind.key]: line for line, row in rows if row[kind.key] not in there}
        await deliver(self._store, kind.table, list(new.values()), self._rejects, query_id)
        if kind.table in ROLLUPS:
            await rebuild(self._store, kind.table, days_of(row[kind.time] for _, row in rows))

    async def _there(self, kind: Kind, rows: list[dict[str, Any]]) -> set[str]:
        found: set[str] = set()
        for start in range(0, len(rows), IDS_AT_ONCE):
            part = rows[start : start + IDS_AT_ONCE]
            times = [row[kind.time] for row in part]
            ids = ",".join(quote(row[kind.key]) for row in part)
            # In the statement, not as a parameter: servers bound the length of a URL.
            answer = await self._store.select(
                f"SELECT {kind.key} AS id FROM {kind.table}"  # noqa: S608
                f" WHERE {kind.time} BETWEEN {{first:Int64}} AND {{last:Int64}} AND {kind.key} IN ({ids})"
                " SETTINGS max_query_size = 67108864",
                {"first": min(times), "last": max(times)},
            )
            found.update(row["id"] for row in answer)
        return found


def _parsed(bodies: list[bytes]) -> list[tuple[bytes, dict[str, Any]]]:
    decode = msgspec.json.Decoder().decode
    return [(line, decode(line)) for body in bodies for line in body.split(b"\n") if line]


def _fail(passed: asyncio.Future[None]) -> None:
    if not passed.done():
        passed.set_exception(TelemetryUnavailable())
        passed.exception()  # nobody may be waiting
