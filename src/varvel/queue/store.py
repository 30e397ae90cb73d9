"""The store of the queue: a small seam, and its SQLite side.

The scheduler decides; the store keeps. SQL of the queue is here and in `0001_queue.sql`.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from varvel.queue.errors import AlreadyEnded
from varvel.queue.model import Job, JobState, Outcome
from varvel.queue.wire import decode_job, decode_outcome, encode_job, encode_outcome
from varvel.state import rows
from varvel.state.database import Database
from varvel.state.outbox import Outbox, Row

_JOBS = ("seq", "request_id", "app", "low", "caller", "hint", "start_deadline", "body_file")
_BODIES = ("seq", "job", "body")
_RESULTS = ("place", "request_id", "body_file", "job", "outcome", "body")

_ALIVE = """
SELECT seq, request_id, app, low, caller, hint, start_deadline, state, attempts, started_at, retries, cancel
FROM queue_jobs WHERE seq > ? ORDER BY seq LIMIT ?
"""
_PROGRESS = """
UPDATE queue_jobs
SET state = json_extract(j.value, '$[1]'), attempts = json_extract(j.value, '$[2]'),
    started_at = json_extract(j.value, '$[3]'), retries = json_extract(j.value, '$[4]')
FROM json_each(?) AS j WHERE queue_jobs.seq = json_extract(j.value, '$[0]')
"""
_CANCEL = "UPDATE queue_jobs SET cancel = 1 WHERE seq IN (SELECT value FROM json_each(?))"
_END_JOBS = "DELETE FROM queue_jobs WHERE seq IN (SELECT value FROM json_each(?))"
_END_BODIES = "DELETE FROM queue_bodies WHERE seq IN (SELECT value FROM json_each(?))"
_WHOLE = """
SELECT b.seq, b.job, b.body, q.body_file, q.state, q.attempts
FROM queue_bodies AS b JOIN queue_jobs AS q USING (seq)
WHERE b.seq IN (SELECT value FROM json_each(?))
"""
_RESULT = "SELECT job, outcome, body, body_file, place FROM queue_results WHERE request_id = ? AND place >= ?"
_EXPIRED = "SELECT place, body_file FROM queue_results WHERE place < ? ORDER BY place LIMIT ?"
_EXPIRE = "DELETE FROM queue_results WHERE place <= ?"
_FILES = """
SELECT body_file FROM queue_jobs WHERE body_file IS NOT NULL
UNION ALL SELECT body_file FROM queue_results WHERE body_file IS NOT NULL
"""


class Alive(NamedTuple):
    """What a restart needs to know of a job that has not ended."""

    seq: int
    request_id: str
    app: str
    low: bool
    caller: str | None
    hint: str | None
    start_deadline: float | None
    running: bool
    """It ran when the server stopped."""
    attempts: int
    started_at: float
    spent: dict[str, int]
    """Retries that each condition has cost."""
    cancel: bool
    """Asked to cancel while it ran."""


class Progress(NamedTuple):
    """Where a job is between its first attempt and its end."""

    seq: int
    running: bool
    attempts: int
    started_at: float
    spent: dict[str, int]


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of a job, and what is recorded of it: one transaction."""

    seq: int
    job: Job
    outcome: Outcome
    expires_at: float
    rows: Sequence[Row]


class QueueStore(Protocol):
    """What keeps the queue. Methods that give a future write: it resolves when the change is synced.

    Writes raise `StorageFull` when there is no room: then nothing was kept.
    """

    def insert(self, seq: int, job: Job) -> asyncio.Future[None]:
        """Keep a new job."""
        ...

    def progress(self, progress: Progress) -> asyncio.Future[None]:
        """Keep that an attempt began, or that the job waits again."""
        ...

    def progress_soon(self, progress: Progress) -> None:
        """The same without waiting for it."""
        ...

    def ask_cancel(self, seq: int) -> asyncio.Future[None]:
        """Keep that the job must not be tried again."""
        ...

    def end(self, ended: Ended) -> asyncio.Future[None]:
        """Replace the job by its result, together with its records. Raises `AlreadyEnded` when it is gone."""
        ...

    async def alive(self, after: int, limit: int) -> list[Alive]:
        """Jobs that have not ended with a `seq` greater than `after`, in order."""
        ...

    async def last_seq(self) -> int:
        """The greatest `seq` of a job that has not ended; 0 without any."""
        ...

    async def jobs(self, seqs: Sequence[int]) -> dict[int, Job]:
        """The whole jobs of these numbers, as far as they have not ended."""
        ...

    async def result(self, request_id: str, now: float) -> tuple[Job, Outcome, float] | None:
        """An ended job (without its body), its outcome, and when it expires; None if unknown or expired."""
        ...

    async def expire(self, now: float, limit: int) -> int:
        """Delete at most `limit` expired results and their files; how many."""
        ...

    async def flush(self, seqs: Sequence[int]) -> int:
        """Keep that these jobs are cancelled although their ends are not written yet; a number for `flushed`."""
        ...

    async def flushes(self) -> dict[int, list[int]]:
        """Flushes that were kept and not yet `flushed`: their numbers and jobs."""
        ...

    async def flushed(self, flush: int) -> None:
        """All ends of that flush are written."""
        ...

    async def clock_steps(self) -> float:
        """What was kept by `keep_clock_steps`; 0 at first."""
        ...

    async def keep_clock_steps(self, seconds: float) -> None:
        """Keep by how many seconds the clock was set so far, all servers on this folder together."""
        ...

    async def sweep(self) -> int:
        """Delete spilled bodies that nothing refers to; how many. Only while nothing else runs."""
        ...


class _Insert(msgspec.Struct):
    seq: int
    job: tuple[str, str, bool, str | None, str | None, float | None, str | None]
    encoded: bytes
    body: bytes


_Change = _Insert | Progress | Ended | int
"""A new job, a progress, an end, or the number of a job to cancel."""


class SqliteQueueStore:
    """`QueueStore` in SQLite; bodies larger than `buffer_body` are files in `spill`, written by the gateway."""

    def __init__(self, database: Database, outbox: Outbox, spill: Path) -> None:
        self._database = database
        self._outbox = outbox
        self._spill = spill
        # Random start: places of an earlier process with the same expiry must not come again.
        self._places = count(int.from_bytes(os.urandom(2), "big"))

    def insert(self, seq: int, job: Job) -> asyncio.Future[None]:
        key = (job.request_id, str(job.app), job.low, job.caller, job.hint, job.start_deadline, _name(job.body_file))
        return self._write(_Insert(seq, key, encode_job(job), job.body))

    def progress(self, progress: Progress) -> asyncio.Future[None]:
        return self._write(progress)

    def progress_soon(self, progress: Progress) -> None:
        change: _Change = progress
        self._database.batch_soon(self._apply, change)

    def ask_cancel(self, seq: int) -> asyncio.Future[None]:
        return self._write(seq)

    def end(self, ended: Ended) -> asyncio.Future[None]:
        future = self._write(ended)
        if ended.job.body_file is not None:
            future.add_done_callback(partial(_unlink_after, ended.job.body_file))
        return future

    async def alive(self, after: int, limit: int) -> list[Alive]:
        return await self._database.read(lambda db: [_alive(row) for row in db.execute(_ALIVE, (after, limit))])

    async def last_seq(self) -> int:
        query = "SELECT coalesce(max(seq), 0) FROM queue_jobs"
        return await self._database.read(lambda db: int(db.execute(query).fetchone()[0]))

    async def jobs(self, seqs: Sequence[int]) -> dict[int, Job]:
        asked = rows.as_json(seqs)
        found = await self._database.read(lambda db: db.execute(_WHOLE, (asked,)).fetchall())
        return {row[0]: self._job(*row[1:]) for row in found}

    async def result(self, request_id: str, now: float) -> tuple[Job, Outcome, float] | None:
        row = await self._database.read(lambda db: db.execute(_RESULT, (request_id, _place(now))).fetchone())
        if row is None:
            return None
        job, outcome, body, body_file, place = row
        return (
            decode_job(job, body=b"", body_file=None, state=JobState.DONE),
            decode_outcome(outcome, body=body, body_file=self._path(body_file)),
            (place >> 20) / 1000,
        )

    async def expire(self, now: float, limit: int) -> int:
        gone = await self._database.read(lambda db: db.execute(_EXPIRED, (_place(now), limit)).fetchall())
        if not gone:
            return 0
        await self._database.write(lambda db: db.execute(_EXPIRE, (gone[-1][0],)) and None)
        files = [self._spill / name for _, name in gone if name]
        if files:
            await asyncio.to_thread(_unlink, files)
        return len(gone)

    async def flush(self, seqs: Sequence[int]) -> int:
        packed = struct.pack(f"<{len(seqs)}q", *seqs)

        def work(db: sqlite3.Connection) -> int:
            return db.execute("INSERT INTO queue_flushes (seqs) VALUES (?)", (packed,)).lastrowid or 0

        return await self._database.write(work)

    async def flushes(self) -> dict[int, list[int]]:
        found = await self._database.read(lambda db: db.execute("SELECT flush, seqs FROM queue_flushes").fetchall())
        return {flush: list(struct.unpack(f"<{len(packed) // 8}q", packed)) for flush, packed in found}

    async def flushed(self, flush: int) -> None:
        await self._database.write(
            lambda db: db.execute("DELETE FROM queue_flushes WHERE flush = ?", (flush,)) and None
        )

    async def clock_steps(self) -> float:
        row = await self._database.read(lambda db: db.execute("SELECT steps FROM queue_clock").fetchone())
        return float(row[0]) if row else 0.0

    async def keep_clock_steps(self, seconds: float) -> None:
        await self._database.write(
            lambda db: db.execute("INSERT OR REPLACE INTO queue_clock VALUES (1, ?)", (seconds,)) and None
        )

    async def sweep(self) -> int:
        kept = await self._database.read(lambda db: {name for (name,) in db.execute(_FILES)})
        return await asyncio.to_thread(_sweep, self._spill, kept)

    def _job(self, job: bytes, body: bytes, body_file: str | None, state: int, attempts: int) -> Job:
        whole = decode_job(job, body=body, body_file=self._path(body_file), state=JobState(state))
        whole.attempts = attempts
        return whole

    def _path(self, name: str | None) -> Path | None:
        return self._spill / name if name else None

    def _write(self, change: _Change) -> asyncio.Future[None]:
        return self._database.batch(self._apply, change)

    # On the writer thread

    def _apply(self, db: sqlite3.Connection, changes: list[_Change]) -> None:
        new: list[_Insert] = []
        progress: dict[int, Progress] = {}
        cancels: list[int] = []
        ends: list[Ended] = []
        for change in changes:
            if isinstance(change, Progress):
                progress[change.seq] = change
            elif isinstance(change, Ended):
                ends.append(change)
            elif isinstance(change, _Insert):
                new.append(change)
            else:
                cancels.append(change)
        if new:
            rows.insert(db, "queue_jobs", _JOBS, [(item.seq, *item.job) for item in new])
            rows.insert(db, "queue_bodies", _BODIES, [(item.seq, item.encoded, item.body) for item in new])
        # What began and ended within one group leaves no trace of its beginning.
        for ended in ends:
            progress.pop(ended.seq, None)
        if progress:
            db.execute(_PROGRESS, (rows.as_json(progress.values()),))
        if cancels:
            db.execute(_CANCEL, (rows.as_json(cancels),))
        if ends:
            self._end(db, ends)

    def _end(self, db: sqlite3.Connection, ends: list[Ended]) -> None:
        seqs = rows.as_json([ended.seq for ended in ends])
        if db.execute(_END_JOBS, (seqs,)).rowcount != len(ends):
            raise AlreadyEnded
        db.execute(_END_BODIES, (seqs,))
        try:
            rows.insert(db, "queue_results", _RESULTS, [self._result(ended) for ended in ends])
        except sqlite3.IntegrityError as problem:
            raise AlreadyEnded from problem
        self._outbox.put(row for ended in ends for row in ended.rows)

    def _result(self, ended: Ended) -> tuple[int, str, str | None, bytes, bytes, bytes]:
        job, outcome = ended.job, ended.outcome
        place = _place(ended.expires_at) | next(self._places) & 0xFFFFF
        return place, job.request_id, _name(outcome.body_file), encode_job(job), encode_outcome(outcome), outcome.body


def _alive(row: tuple[int, str, str, int, str | None, str | None, float | None, int, int, float, str, int]) -> Alive:
    seq, request_id, app, low, caller, hint, deadline, state, attempts, started_at, retries, cancel = row
    spent = {} if retries == "{}" else msgspec.json.decode(retries, type=dict[str, int])
    return Alive(
        seq, request_id, app, bool(low), caller, hint, deadline, state == 1, attempts, started_at, spent, bool(cancel)
    )


def _place(at: float) -> int:
    return int(at * 1000) << 20


def _name(path: Path | None) -> str | None:
    return path.name if path is not None else None


def _unlink(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _unlink_after(path: Path, future: asyncio.Future[None]) -> None:
    if not future.cancelled() and future.exception() is None:
        future.get_loop().run_in_executor(None, _unlink, [path])


def _sweep(folder: Path, kept: set[str]) -> int:
    orphans = [path for path in folder.iterdir() if path.name not in kept] if folder.is_dir() else []
    _unlink(orphans)
    return len(orphans)
