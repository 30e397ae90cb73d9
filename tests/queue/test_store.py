"""What every store of the queue must do. An implementation is added to `STORES`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from tests.queue.parts import MACHINE, job, outcome

from varvel.ids import now
from varvel.queue.errors import AlreadyEnded
from varvel.queue.model import Job, JobState, Outcome
from varvel.queue.store import Ended, Progress, QueueStore, SqliteQueueStore
from varvel.state.database import Database
from varvel.state.outbox import Outbox
from varvel.telemetry.records import rows


class Opened:
    """A store, and how the rest of Varvel sees what it wrote."""

    def __init__(self, store: QueueStore, outbox: Outbox, spill: Path) -> None:
        self.store = store
        self.outbox = outbox
        self.spill = spill

    async def recorded(self, kind: str) -> list[str]:
        batches = await self.outbox.peek(kind, 1_000_000)
        return [msgspec.json.decode(line)["request_id"] for batch in batches for line in batch.body.splitlines()]


Open = Callable[[Path], AbstractAsyncContextManager[Opened]]


@asynccontextmanager
async def sqlite(folder: Path) -> AsyncIterator[Opened]:
    database = Database.open(folder / "state.db")
    outbox = Outbox(database)
    spill = folder / "spill"
    spill.mkdir(exist_ok=True)
    yield Opened(SqliteQueueStore(database, outbox, spill), outbox, spill)
    await database.close()


STORES: dict[str, Open] = {"sqlite": sqlite}


@pytest.fixture(params=STORES)
def open_store(request: pytest.FixtureRequest) -> Open:
    return STORES[request.param]


def ended(seq: int, of: Job, result: Outcome | None = None, expires_at: float | None = None) -> Ended:
    result = result or outcome()
    records = rows(
        request_id=of.request_id,
        app=of.app,
        endpoint_id=of.endpoint_id,
        caller=of.caller,
        kind="queue",
        method=of.method,
        sent_at=of.submitted_at,
        attempts=1,
        outcome=result,
        machine=MACHINE,
    )
    kept = [row for row in records if row is not None]
    return Ended(seq, of, result, now() + 100 if expires_at is None else expires_at, kept)


async def test_a_job_comes_back_as_it_went_in(open_store: Open, tmp_path: Path) -> None:
    given = job(
        query=b"a=1",
        headers=[(b"x-a", b"\xff")],
        low=True,
        start_deadline=now() + 5,
        webhook="http://127.0.0.1/",
        hint="h",
        no_retry=True,
        retry_config={"timeout": 2},
        store_io=False,
        body=b"\x00\xff",
    )
    async with open_store(tmp_path) as opened:
        await opened.store.insert(1, given)
    async with open_store(tmp_path) as opened:
        assert await opened.store.jobs([1, 2]) == {1: given}
        (row,) = await opened.store.alive(0, 10)
        assert (row.seq, row.request_id, row.app, row.low) == (1, given.request_id, "me/echo", True)
        assert (row.caller, row.hint, row.start_deadline, row.running) == ("me", "h", given.start_deadline, False)
        assert await opened.store.last_seq() == 1


async def test_alive_jobs_come_in_order_and_in_pages(open_store: Open, tmp_path: Path) -> None:
    async with open_store(tmp_path) as opened:
        await asyncio.gather(*[opened.store.insert(seq, job()) for seq in (3, 1, 2, 5, 4)])
        assert [row.seq for row in await opened.store.alive(0, 3)] == [1, 2, 3]
        assert [row.seq for row in await opened.store.alive(3, 3)] == [4, 5]


async def test_progress_is_kept_and_the_last_word_counts(open_store: Open, tmp_path: Path) -> None:
    async with open_store(tmp_path) as opened:
        await opened.store.insert(1, job())
        opened.store.progress_soon(Progress(1, True, 1, 5.0, {}))
        opened.store.progress_soon(Progress(1, False, 1, 0.0, {"timeout": 1}))
        await opened.store.progress(Progress(1, True, 2, 7.5, {"timeout": 1}))
        (row,) = await opened.store.alive(0, 10)
        assert (row.running, row.attempts, row.started_at, row.spent) == (True, 2, 7.5, {"timeout": 1})
        assert (await opened.store.jobs([1]))[1].state is JobState.RUNNING
        await opened.store.ask_cancel(1)
        assert (await opened.store.alive(0, 10))[0].cancel


async def test_an_end_is_result_and_records_together(open_store: Open, tmp_path: Path) -> None:
    given, result = job(), outcome(422, b"no", error="bad", units=2.5, cold_boot=1.5)
    async with open_store(tmp_path) as opened:
        await opened.store.insert(1, given)
        await opened.store.end(ended(1, given, result))
    async with open_store(tmp_path) as opened:
        found = await opened.store.result(given.request_id, now())
        assert found is not None
        assert found[0].request_id == given.request_id
        assert (found[0].body, found[0].state) == (b"", JobState.DONE)
        assert found[1] == result
        assert await opened.store.alive(0, 10) == []
        assert await opened.store.jobs([1]) == {}
        assert await opened.recorded("requests") == [given.request_id]
        assert await opened.recorded("billing") == [given.request_id]


async def test_a_second_end_is_refused_and_records_nothing(open_store: Open, tmp_path: Path) -> None:
    given, other = job(), job()
    async with open_store(tmp_path) as opened:
        await opened.store.insert(1, given)
        await opened.store.insert(2, other)
        ends = [opened.store.end(ended(1, given)), opened.store.end(ended(1, given)), opened.store.end(ended(2, other))]
        results = await asyncio.gather(*ends, return_exceptions=True)
        assert [type(result) for result in results] == [type(None), AlreadyEnded, type(None)]
        with pytest.raises(AlreadyEnded):
            await opened.store.end(ended(1, given))
        assert sorted(await opened.recorded("requests")) == sorted([given.request_id, other.request_id])


async def test_results_expire_with_their_files(open_store: Open, tmp_path: Path) -> None:
    async with open_store(tmp_path) as opened:
        at = now()
        file = opened.spill / "answer"
        file.write_bytes(b"large")
        for seq, expires_at in ((1, at + 10), (2, at + 20), (3, at + 30)):
            given = job(request_id=f"r{seq}")
            await opened.store.insert(seq, given)
            result = outcome(body=b"", body_file=file) if seq == 1 else outcome()
            await opened.store.end(ended(seq, given, result, expires_at))
        found = await opened.store.result("r1", at)
        assert found is not None
        assert found[1].body_file == file
        assert abs(found[2] - (at + 10)) < 0.01
        assert await opened.store.result("r1", at + 11) is None
        assert await opened.store.expire(at + 5, 10) == 0
        assert await opened.store.expire(at + 25, 1) == 1
        assert await opened.store.expire(at + 25, 10) == 1
        assert not file.exists()
        assert await opened.store.result("r3", at + 25) is not None


async def test_a_spilled_body_goes_when_its_job_ends(open_store: Open, tmp_path: Path) -> None:
    async with open_store(tmp_path) as opened:
        file = opened.spill / "body"
        file.write_bytes(b"large")
        given = job(body=b"", body_file=file)
        await opened.store.insert(1, given)
        assert (await opened.store.jobs([1]))[1].body_file == file
        await opened.store.end(ended(1, given))
        async with asyncio.timeout(5):
            while file.exists():
                await asyncio.sleep(0.01)


async def test_a_sweep_deletes_only_what_nothing_refers_to(open_store: Open, tmp_path: Path) -> None:
    async with open_store(tmp_path) as opened:
        for name in ("waits", "answer", "orphan"):
            (opened.spill / name).write_bytes(b"x")
        await opened.store.insert(1, job(body=b"", body_file=opened.spill / "waits"))
        done = job()
        await opened.store.insert(2, done)
        await opened.store.end(ended(2, done, outcome(body=b"", body_file=opened.spill / "answer")))
        assert await opened.store.sweep() == 1
        assert sorted(path.name for path in opened.spill.iterdir()) == ["answer", "waits"]


async def test_a_flush_is_kept_until_its_ends_are_written(open_store: Open, tmp_path: Path) -> None:
    async with open_store(tmp_path) as opened:
        flush = await opened.store.flush(list(range(1000)))
    async with open_store(tmp_path) as opened:
        assert await opened.store.flushes() == {flush: list(range(1000))}
        await opened.store.flushed(flush)
        assert await opened.store.flushes() == {}


async def test_the_steps_of_the_clock_are_kept(open_store: Open, tmp_path: Path) -> None:
    async with open_store(tmp_path) as opened:
        assert await opened.store.clock_steps() == 0
        await opened.store.keep_clock_steps(3600.0)
        await opened.store.keep_clock_steps(-1.5)
    async with open_store(tmp_path) as opened:
        assert await opened.store.clock_steps() == -1.5
