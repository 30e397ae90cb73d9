"""The state database: SQLite in WAL mode with one writer thread (group commit) and a few readers.

All writes that arrive while one fsync runs share the next transaction, so that the price of a sync is paid once
for all of them. A write is acknowledged after the sync, never before.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import structlog

from varvel.state import migrations
from varvel.state.errors import Closed, as_varvel_error, is_storage_trouble

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]
Batch = Callable[[sqlite3.Connection, list[T]], None]
"""Writes many items with few statements. Must be all or nothing in memory: it may be called again, item by item."""

GROUP = 8192
CROWD = 4
"""Writes of one commit that show that many come at once."""
PACE = 0.002
"""Seconds between the beginnings of two commits while many come at once: what a commit costs is mostly the same for
any number of writes. A disk whose sync takes longer than that is never waited for."""
READERS = 3
AHEAD = 1024
"""Writes after which pages are carried from the log into the database, beside the writer."""
LOG_PAGES = 16_384
"""Pages in the log (64 MiB) with which the writer itself carries over what is left, so that the log begins anew."""


class Companion(Protocol):
    """Somebody who takes part in each transaction, on the writer thread."""

    def before_commit(self, connection: sqlite3.Connection) -> None:
        """The last statements of the transaction."""

    def rolled_back(self) -> None:
        """Forget what was gathered for this transaction."""

    def committed(self) -> Callable[[], None] | None:
        """The transaction is on disk. What is returned is called on the event loop."""


@dataclass(slots=True, eq=False)
class _Write:
    batch: Batch[Any] | None
    """None for a single work, which is then `item`."""
    item: Any
    future: asyncio.Future[Any] | None
    result: Any = None
    error: BaseException | None = None


class Database:
    """One writer, some readers. Use from one event loop; `open` and `close` once."""

    def __init__(self, path: Path, writer: sqlite3.Connection) -> None:
        self.path = path
        self._writer = writer
        self._log = structlog.get_logger("varvel.state")
        self._companions: list[Companion] = []
        self._inbox: deque[_Write] = deque()
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._idle = False
        self._handing_over = False
        self._closing = False
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._readers = ThreadPoolExecutor(READERS, "varvel-state-read", initializer=self._open_reader)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._written = 0
        self._carry: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._carrier = threading.Thread(target=self._carry_over, name="varvel-state-carry", daemon=True)
        self._carrier.start()
        self._thread = threading.Thread(target=self._write_groups, name="varvel-state-write", daemon=True)
        self._thread.start()

    @classmethod
    def open(cls, path: Path) -> Database:
        """Open or create the database at `path` and bring its tables up to date. Blocks for some milliseconds."""
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = _connect(path)
        try:
            migrations.apply(connection)
        except BaseException:
            connection.close()
            raise
        return cls(path, connection)

    def join(self, companion: Companion) -> None:
        """Let `companion` take part in every transaction from now on."""
        self._companions.append(companion)

    async def write(self, work: Work[T]) -> T:
        """Run `work` in a transaction shared with others; return its result after the commit is synced.

        An exception of `work` undoes only its own statements. Raises `StorageFull` when the disk is full: then
        nothing of the transaction was kept. `work` runs on the writer thread and must only use its connection.
        """
        future: asyncio.Future[T] = (self._loop or self._bind()).create_future()
        self._put(_Write(None, work, future))
        return await future

    def write_soon(self, work: Work[Any]) -> None:
        """The same without waiting; an error is logged."""
        self._put(_Write(None, work, None))

    def batch(self, apply: Batch[T], item: T) -> asyncio.Future[None]:
        """Write `item` together with all others of this group that have the same `apply`. Await for the sync.

        Batches keep the order of their items; an item that fails is found by trying each alone.
        """
        future: asyncio.Future[None] = (self._loop or self._bind()).create_future()
        self._put(_Write(apply, item, future))
        return future

    def batch_soon(self, apply: Batch[T], item: T) -> None:
        """`batch` without waiting; an error is logged."""
        self._put(_Write(apply, item, None))

    async def read(self, work: Work[T]) -> T:
        """Run `work` on a reader: it sees everything that was committed before this call."""
        if self._closing:
            raise Closed
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._read, work)

    def read_now(self, work: Work[T]) -> T:
        """The same, blocking: for parts that look at their tables while the server is put together."""
        return self._readers.submit(self._read, work).result()

    async def close(self) -> None:
        """Write what waits, then close. Later writes and reads raise `Closed`."""
        if self._closing:
            return
        self._closing = True
        self._wake.put(None)
        await asyncio.to_thread(self._finish)

    def _finish(self) -> None:
        self._thread.join()
        self._readers.shutdown()
        for connection in self._connections:
            connection.close()

    # Event loop side

    def _bind(self) -> asyncio.AbstractEventLoop:
        self._loop = asyncio.get_running_loop()
        return self._loop

    def _put(self, write: _Write) -> None:
        if self._closing:
            raise Closed
        self._inbox.append(write)
        if not self._handing_over:
            self._handing_over = True
            (self._loop or self._bind()).call_soon(self._hand_over)

    def _hand_over(self) -> None:
        """Wake the writer once for all that this turn of the loop has brought, instead of in the middle of it."""
        self._handing_over = False
        if self._idle:
            self._idle = False
            self._wake.put(None)

    # Reader threads

    def _open_reader(self) -> None:
        connection = _connect(self.path)
        connection.execute("PRAGMA query_only = ON")
        self._connections.append(connection)
        self._local.connection = connection

    def _read(self, work: Work[T]) -> T:
        try:
            return work(self._local.connection)
        except sqlite3.Error as problem:
            raise as_varvel_error(problem) from None

    # Writer thread

    def _write_groups(self) -> None:
        while True:
            if not self._inbox:
                # Set before the second look: a writer that comes in between sees it and wakes us.
                self._idle = True
                if not self._inbox:
                    if self._closing:
                        break
                    self._wake.get()
                self._idle = False
                continue
            group: list[_Write] = []
            while self._inbox and len(group) < GROUP:
                group.append(self._inbox.popleft())
            began = time.monotonic()
            self._commit(group)
            self._written += len(group)
            if self._written >= AHEAD:
                self._written = 0
                self._carry.put(True)
            if len(group) >= CROWD and (early := began + PACE - time.monotonic()) > 0:
                time.sleep(early)
        self._carry.put(False)
        self._carrier.join()
        self._writer.close()

    def _carry_over(self) -> None:
        """Copy pages from the log into the database on a thread of its own: it takes syncs, and no commit waits."""
        connection = _connect(self.path)
        while self._carry.get():
            try:
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            except sqlite3.Error as problem:
                self._log.warning("the log could not be carried into the database", error=str(problem))
        connection.close()

    def _commit(self, group: list[_Write]) -> None:
        batch = group[0].batch
        if batch is None or any(write.batch is not batch for write in group) or not self._committed_whole(group, batch):
            self._commit_isolated(group)

    def _committed_whole(self, group: list[_Write], batch: Batch[Any]) -> bool:
        """Commit one batch with no savepoint around it: each statement costs two turns of the interpreter lock.

        False when it failed and nothing of it was kept.
        """
        try:
            self._writer.execute("BEGIN IMMEDIATE")
            batch(self._writer, [write.item for write in group])
            for companion in self._companions:
                companion.before_commit(self._writer)
            self._writer.execute("COMMIT")
        except BaseException:
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
            for companion in self._companions:
                companion.rolled_back()
            return False
        self._tell(group, self._committed())
        return True

    def _committed(self) -> list[Callable[[], None]]:
        return [call for companion in self._companions if (call := companion.committed()) is not None]

    def _commit_isolated(self, group: list[_Write]) -> None:
        after: list[Callable[[], None]] = []
        try:
            self._writer.execute("BEGIN IMMEDIATE")
            self._run(group)
            for companion in self._companions:
                companion.before_commit(self._writer)
            self._writer.execute("COMMIT")
        except BaseException as problem:
            self._roll_back(group, as_varvel_error(problem))
        else:
            after = self._committed()
        self._tell(group, after)

    def _roll_back(self, group: list[_Write], error: BaseException) -> None:
        if self._writer.in_transaction:
            self._writer.execute("ROLLBACK")
        for companion in self._companions:
            companion.rolled_back()
        for write in group:
            write.error = error

    def _run(self, group: list[_Write]) -> None:
        batches: dict[Batch[Any], list[_Write]] = {}
        for write in group:
            if write.batch is None:
                self._run_alone(write)
            elif (members := batches.get(write.batch)) is None:
                batches[write.batch] = [write]
            else:
                members.append(write)
        for batch, members in batches.items():
            self._run_batch(batch, members)

    def _run_alone(self, write: _Write) -> None:
        batch, item = write.batch, write.item
        work: Work[Any] = item if batch is None else lambda db: batch(db, [item])
        try:
            write.result = self._isolated(work)
        except Exception as problem:
            if is_storage_trouble(problem):
                raise
            write.error = problem

    def _run_batch(self, batch: Batch[Any], members: list[_Write]) -> None:
        try:
            self._isolated(lambda db: batch(db, [write.item for write in members]))
        except Exception as problem:
            if is_storage_trouble(problem):
                raise
            if len(members) == 1:
                members[0].error = problem
                return
            for write in members:
                self._run_alone(write)

    def _isolated(self, work: Work[T]) -> T:
        self._writer.execute("SAVEPOINT work")
        try:
            result = work(self._writer)
        except BaseException:
            # SQLite itself ends the transaction on a full disk; there is no savepoint left then.
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK TO work")
                self._writer.execute("RELEASE work")
            raise
        self._writer.execute("RELEASE work")
        return result

    def _tell(self, group: list[_Write], after: list[Callable[[], None]]) -> None:
        for write in group:
            if write.future is None and write.error is not None:
                self._log.error("state write failed", error=repr(write.error))
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(_resolve, group, after)
        except RuntimeError:
            self._log.info("state write ended after its event loop")


def _resolve(group: list[_Write], after: list[Callable[[], None]]) -> None:
    for write in group:
        future = write.future
        if future is None or future.done():
            continue
        if write.error is not None:
            future.set_exception(write.error)
        else:
            future.set_result(write.result)
    for call in after:
        call()


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False, cached_statements=512)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA temp_store = MEMORY")
        connection.execute("PRAGMA cache_size = -65536")
        # Zeros over all that is deleted would double what each job writes: only where a page is written anyway.
        connection.execute("PRAGMA secure_delete = FAST")
        connection.execute(f"PRAGMA wal_autocheckpoint = {LOG_PAGES}")
    except BaseException:
        connection.close()
        raise
    return connection
