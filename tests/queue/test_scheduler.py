"""The scheduler with a real store: order, ends, retries, cancelling, deadlines, restarts."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest
from tests.queue.parts import ECHO, OTHER, Parts, job, outcome, parts

from varvel.errors import StorageFull
from varvel.ids import now
from varvel.queue.errors import QueueFull
from varvel.queue.model import AttemptResult, Condition, Job, JobState, Outcome
from varvel.state.errors import Closed


class Gate:
    """An app whose requests run until they are let go."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self._open: dict[str, asyncio.Future[AttemptResult]] = {}
        self._all = asyncio.Event()

    async def __call__(self, job: Job) -> AttemptResult:
        self.begun.append(job.request_id)
        if self._all.is_set():
            return AttemptResult(outcome=outcome())
        self._open[job.request_id] = asyncio.get_running_loop().create_future()
        return await self._open[job.request_id]

    def let_go(self, request_id: str, result: AttemptResult | None = None) -> None:
        waits = self._open.pop(request_id)
        if not waits.done():  # it was cut off by a restart
            waits.set_result(result or AttemptResult(outcome=outcome()))

    def open(self) -> None:
        self._all.set()
        for request_id in list(self._open):
            self.let_go(request_id)

    async def began(self, count: int) -> None:
        async with asyncio.timeout(10):
            while len(self.begun) < count:
                await asyncio.sleep(0.002)


def failed(status: int = 503, condition: Condition = "server_error") -> AttemptResult:
    return AttemptResult(outcome=outcome(status), condition=condition)


async def recorded(made: Parts, kind: str = "requests") -> list[str]:
    batches = await made.outbox.peek(kind, 10_000_000)
    return [msgspec.json.decode(line)["request_id"] for batch in batches for line in batch.body.splitlines()]


async def test_a_submitted_job_runs_and_its_result_can_be_fetched(tmp_path: Path) -> None:
    heard: list[tuple[str, int]] = []
    async with parts(tmp_path) as made:
        made.scheduler.on_finished(lambda job, end: heard.append((job.request_id, end.status)))
        given = job()
        assert await made.scheduler.submit(given) == 0
        assert (await made.ended(given.request_id)).body == b'{"ok": true}'
        found = await made.scheduler.result(given.request_id)
        assert found is not None
        assert found[0].attempts == 1
        assert found[0].gateway_request_id == given.request_id
        assert heard == [(given.request_id, 200)]
        assert await recorded(made) == await recorded(made, "billing") == [given.request_id]


async def test_jobs_run_in_order_of_arrival_and_low_ones_last(tmp_path: Path) -> None:
    gate = Gate()
    async with parts(tmp_path, serve=gate) as made:
        jobs = [job(low=low) for low in (False, True, False, False)]
        positions = [await made.scheduler.submit(given) for given in jobs]
        assert positions[2:] == [0, 1]
        await gate.began(1)
        waits = [await made.scheduler.status(given.request_id) for given in jobs]
        assert [(status.state, status.position) for status in waits if status] == [
            (JobState.RUNNING, None),
            (JobState.QUEUED, 2),
            (JobState.QUEUED, 0),
            (JobState.QUEUED, 1),
        ]
        assert made.scheduler.size(ECHO) == 3
        gate.open()
        for given in jobs:
            await made.ended(given.request_id)
        assert made.ran == [jobs[n].request_id for n in (0, 2, 3, 1)]


async def test_a_watcher_sees_each_change_up_to_the_end(tmp_path: Path) -> None:
    gate = Gate()
    async with parts(tmp_path, serve=gate) as made:
        first, second = job(), job()
        await made.scheduler.submit(first)
        await made.scheduler.submit(second)
        await gate.began(1)
        seen: list[tuple[JobState, int | None]] = []

        async def watch() -> None:
            seen.extend([(status.state, status.position) async for status in made.scheduler.watch(second.request_id)])

        watching = asyncio.create_task(watch())
        await asyncio.sleep(0.05)
        gate.let_go(first.request_id)
        await gate.began(2)
        await asyncio.sleep(0.05)
        gate.let_go(second.request_id)
        await asyncio.wait_for(watching, 5)
        assert seen == [(JobState.QUEUED, 0), (JobState.RUNNING, None), (JobState.DONE, None)]


async def test_an_unknown_request_has_no_status_result_or_cancel(tmp_path: Path) -> None:
    async with parts(tmp_path) as made:
        assert await made.scheduler.status("nobody") is None
        assert await made.scheduler.result("nobody") is None
        assert await made.scheduler.cancel("nobody") is None
        assert [status async for status in made.scheduler.watch("nobody")] == []


async def test_a_retryable_failure_is_tried_again_under_the_same_id(tmp_path: Path) -> None:
    answers = [failed(), failed(504, "timeout"), AttemptResult(outcome=outcome())]
    attempts: list[tuple[int, str]] = []

    async def serve(given: Job) -> AttemptResult:
        attempts.append((given.attempts, given.gateway_request_id))
        return answers.pop(0)

    async with parts(tmp_path, serve=serve) as made:
        given = job()
        await made.scheduler.submit(given)
        assert (await made.ended(given.request_id)).status == 200
        assert [n for n, _ in attempts] == [1, 2, 3]
        assert attempts[0][1] == given.request_id
        assert len({gateway_id for _, gateway_id in attempts}) == 3
        assert await recorded(made) == [given.request_id]


async def test_the_spilled_answer_of_an_attempt_that_is_tried_again_is_deleted(tmp_path: Path) -> None:
    files = [tmp_path / "spill" / f"{n}.answer" for n in range(2)]

    async def serve(given: Job) -> AttemptResult:
        path = files[given.attempts - 1]
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * 100)
        if given.attempts == 1:
            return AttemptResult(outcome=outcome(503, b"", body_file=path), condition="server_error")
        return AttemptResult(outcome=outcome(200, b"", body_file=path))

    async with parts(tmp_path, serve=serve) as made:
        given = job()
        await made.scheduler.submit(given)
        assert (await made.ended(given.request_id)).body_file == files[1]
        async with asyncio.timeout(5):
            while files[0].exists():
                await asyncio.sleep(0.01)
        assert files[1].exists()


async def test_a_budget_ends_with_the_last_failure(tmp_path: Path) -> None:
    async def serve(given: Job) -> AttemptResult:
        return failed()

    async with parts(tmp_path, serve=serve) as made:
        ten, two, one = job(), job(retry_config={"server_error": 1}), job(no_retry=True)
        for given, attempts in ((ten, 10), (two, 2), (one, 1)):
            await made.scheduler.submit(given)
            assert (await made.ended(given.request_id)).status == 503
            assert made.ran.count(given.request_id) == attempts


async def test_a_job_between_two_attempts_waits_and_can_be_cancelled(tmp_path: Path) -> None:
    async def serve(given: Job) -> AttemptResult:
        return failed()

    async with parts(tmp_path, serve=serve, settings={"retry_backoff": 30.0}) as made:
        given, next_ = job(), job(no_retry=True)
        await made.scheduler.submit(given)
        await made.scheduler.submit(next_)
        assert (await made.ended(next_.request_id)).status == 503
        status = await made.scheduler.status(given.request_id)
        assert status is not None
        assert (status.state, status.position) == (JobState.QUEUED, 0)
        assert made.scheduler.size(ECHO) == 1
        assert await made.scheduler.cancel(given.request_id) == "cancelled"
        assert (await made.ended(given.request_id)).status == 499
        assert made.ran.count(given.request_id) == 1


async def test_a_cancelled_job_never_runs_later(tmp_path: Path) -> None:
    gate = Gate()
    async with parts(tmp_path, serve=gate) as made:
        first, second = job(), job()
        await made.scheduler.submit(first)
        await made.scheduler.submit(second)
        await gate.began(1)
        assert await made.scheduler.cancel(second.request_id) == "cancelled"
        assert await made.scheduler.cancel(second.request_id) == "completed"
        gate.open()
        await made.ended(first.request_id)
        end = await made.ended(second.request_id)
        assert (end.status, end.error_type, end.cancelled) == (499, "client_cancelled", True)
        await made.restart()
        await asyncio.sleep(0.05)
        assert second.request_id not in gate.begun
        assert sorted(await recorded(made)) == sorted([first.request_id, second.request_id])


async def test_a_running_job_is_asked_to_stop_and_not_tried_again(tmp_path: Path) -> None:
    gate = Gate()
    asked: list[str] = []
    async with parts(tmp_path, serve=gate) as made:
        made.scheduler.on_cancel_running(lambda job, slot: asked.append(job.request_id))
        given = job()
        await made.scheduler.submit(given)
        await gate.began(1)
        assert await made.scheduler.cancel(given.request_id) == "requested"
        assert asked == [given.request_id]
        gate.let_go(given.request_id, failed())
        assert (await made.ended(given.request_id)).status == 499
        assert await made.scheduler.cancel(given.request_id) == "completed"
        assert made.ran == [given.request_id]


async def test_a_running_job_that_finishes_although_asked_to_stop_keeps_its_answer(tmp_path: Path) -> None:
    gate = Gate()
    async with parts(tmp_path, serve=gate) as made:
        given = job()
        await made.scheduler.submit(given)
        await gate.began(1)
        assert await made.scheduler.cancel(given.request_id) == "requested"
        gate.let_go(given.request_id)
        assert (await made.ended(given.request_id)).status == 200


async def test_cancel_and_dispatch_never_both_win(tmp_path: Path) -> None:
    async with parts(tmp_path, slots=3) as made:
        jobs = [job() for _ in range(200)]

        async def submit_and_cancel(given: Job) -> str | None:
            await made.scheduler.submit(given)
            return await made.scheduler.cancel(given.request_id)

        answers = await asyncio.gather(*[submit_and_cancel(given) for given in jobs])
        ends = [await made.ended(given.request_id) for given in jobs]
        for given, answer, end in zip(jobs, answers, ends, strict=True):
            if answer == "cancelled":
                assert end.status == 499
                assert given.request_id not in made.ran
            else:
                assert made.ran.count(given.request_id) == 1
        assert len(await recorded(made)) == len(set(await recorded(made))) == 200


async def test_too_many_waiting_are_refused_when_the_caller_says_so(tmp_path: Path) -> None:
    gate = Gate()
    async with parts(tmp_path, serve=gate) as made:
        await made.scheduler.submit(job())
        await gate.began(1)
        await made.scheduler.submit(job(), max_queue_length=0)
        with pytest.raises(QueueFull):
            await made.scheduler.submit(job(), max_queue_length=0)
        await made.scheduler.submit(job(), max_queue_length=1)
        assert made.scheduler.size(ECHO) == 2


async def test_a_job_that_does_not_start_in_time_ends_as_the_users_timeout(tmp_path: Path) -> None:
    gate = Gate()
    async with parts(tmp_path, serve=gate) as made:
        running, late = job(start_deadline=now() + 0.1), job(start_deadline=now() + 0.1)
        await made.scheduler.submit(running)
        await made.scheduler.submit(late)
        end = await made.ended(late.request_id)
        assert (end.status, end.error_type) == (504, "request_timeout")
        assert (b"x-fal-request-timeout-type", b"user") in end.headers
        gate.open()
        assert (await made.ended(running.request_id)).status == 200
        assert gate.begun == [running.request_id]


async def test_a_start_deadline_counts_between_attempts_too(tmp_path: Path) -> None:
    async def serve(given: Job) -> AttemptResult:
        return failed()

    async with parts(tmp_path, serve=serve, settings={"retry_backoff": 30.0}) as made:
        given = job(start_deadline=now() + 0.1)
        await made.scheduler.submit(given)
        assert (await made.ended(given.request_id)).status == 504


async def test_waiting_jobs_of_a_deleted_app_end(tmp_path: Path) -> None:
    async with parts(tmp_path, slots=0) as made:
        jobs = [job(OTHER) for _ in range(5)]
        for given in jobs:
            await made.scheduler.submit(given)
        del made.catalog.deployed[OTHER]
        made.pool.free(OTHER)
        assert [(await made.ended(given.request_id)).status for given in jobs] == [404] * 5


async def test_a_flush_cancels_what_waits_and_nothing_else(tmp_path: Path) -> None:
    gate = Gate()
    heard: list[str] = []
    async with parts(tmp_path, serve=gate) as made:
        made.scheduler.on_finished(lambda job, end: heard.append(job.request_id))
        running, other = job(), job(OTHER)
        await made.scheduler.submit(running)
        await gate.began(1)
        mine = [job() for _ in range(20)]
        theirs = [job(caller="them") for _ in range(3)]
        for given in [*mine, *theirs]:
            await made.scheduler.submit(given)
        made.pool.slots = 0
        await made.scheduler.submit(other)
        assert await made.scheduler.flush(ECHO, caller="me") == 20
        assert made.scheduler.size(ECHO) == 3
        assert await made.scheduler.flush(ECHO) == 3
        assert await made.scheduler.flush(ECHO) == 0
        for given in [*mine, *theirs]:
            assert (await made.ended(given.request_id)).status == 499
            assert await made.scheduler.cancel(given.request_id) == "completed"
        assert made.scheduler.size(OTHER) == 1
        made.pool.slots = 1
        gate.open()
        made.pool.free(OTHER)
        assert (await made.ended(running.request_id)).status == 200
        assert (await made.ended(other.request_id)).status == 200
        async with asyncio.timeout(10):
            while len(heard) < 25:
                await asyncio.sleep(0.01)
        assert sorted(heard) == sorted(given.request_id for given in [*mine, *theirs, running, other])
        assert len(await recorded(made)) == len(set(await recorded(made))) == 25


async def test_a_flush_holds_although_the_server_stops_before_its_ends_are_written(tmp_path: Path) -> None:
    gate = Gate()
    async with parts(tmp_path, serve=gate, slots=0) as made:
        jobs = [job() for _ in range(30)]
        for given in jobs:
            await made.scheduler.submit(given)
        rows = await made.store.alive(0, 100)
        await made.store.flush([row.seq for row in rows[:20]])
        made.slots = 1
        await made.restart()
        gate.open()
        ends = [await made.ended(given.request_id) for given in jobs]
        assert [end.status for end in ends] == [499] * 20 + [200] * 10
        assert gate.begun == [given.request_id for given in jobs[20:]]
        assert await made.store.flushes() == {}


async def test_waiting_jobs_keep_their_order_over_a_restart(tmp_path: Path) -> None:
    async with parts(tmp_path, slots=0) as made:
        jobs = [job(low=n % 3 == 0) for n in range(10)]
        for given in jobs:
            await made.scheduler.submit(given)
        made.slots = 1
        await made.restart()
        for given in jobs:
            assert (await made.ended(given.request_id)).status == 200
        normal = [given.request_id for given in jobs if not given.low]
        assert made.ran == normal + [given.request_id for given in jobs if given.low]


async def test_results_outlive_a_restart_until_they_expire(tmp_path: Path) -> None:
    async with parts(tmp_path, settings={"result_ttl": 1.0}) as made:
        given, kept = job(store_io=False), job()
        for each in (given, kept):
            await made.scheduler.submit(each)
            await made.ended(each.request_id)
        await made.restart()
        found = await made.scheduler.result(given.request_id)
        assert found is not None
        assert found[1].body == b'{"ok": true}'
        await asyncio.sleep(1.2)
        assert await made.scheduler.status(given.request_id) is None
        assert await made.scheduler.result(kept.request_id) is not None


async def test_a_job_cut_off_by_a_restart_has_spent_an_attempt_and_is_back_at_its_place(tmp_path: Path) -> None:
    gate = Gate()
    async with parts(tmp_path, serve=gate) as made:
        cut, once, waiting = job(), job(no_retry=True), job()
        made.pool.slots = 2
        for given in (cut, once, waiting):
            await made.scheduler.submit(given)
        await gate.began(2)
        await made.restart()
        assert (await made.ended(once.request_id)).status == 503
        await gate.began(3)
        assert gate.begun[2] == cut.request_id
        gate.open()
        await made.ended(waiting.request_id)
        found = await made.scheduler.result(cut.request_id)
        assert found is not None
        assert found[0].attempts == 2
        assert made.ran.count(once.request_id) == 1


async def test_a_job_that_was_asked_to_stop_does_not_run_after_a_restart(tmp_path: Path) -> None:
    gate = Gate()
    async with parts(tmp_path, serve=gate) as made:
        given = job()
        await made.scheduler.submit(given)
        await gate.began(1)
        assert await made.scheduler.cancel(given.request_id) == "requested"
        await made.restart()
        assert (await made.ended(given.request_id)).status == 499
        assert len(gate.begun) == 1


async def test_a_graceful_stop_lets_running_jobs_end(tmp_path: Path) -> None:
    async def serve(given: Job) -> AttemptResult:
        await asyncio.sleep(0.1)
        return AttemptResult(outcome=outcome())

    async with parts(tmp_path, serve=serve) as made:
        first, second = job(), job()
        await made.scheduler.submit(first)
        await made.scheduler.submit(second)
        await asyncio.sleep(0.02)
        await made.scheduler.stop(5)
        with pytest.raises(Closed):
            await made.scheduler.submit(job())
        assert await made.store.result(first.request_id, now()) is not None
        assert made.ran == [first.request_id]
        assert [row.request_id for row in await made.store.alive(0, 10)] == [second.request_id]


async def test_a_submitter_that_goes_away_leaves_no_job_behind_in_no_line(tmp_path: Path) -> None:
    async with parts(tmp_path) as made:
        given = job()
        submitting = asyncio.create_task(made.scheduler.submit(given))
        await asyncio.sleep(0)
        submitting.cancel()
        async with asyncio.timeout(5):
            while not made.ran:
                await asyncio.sleep(0.01)
        assert (await made.ended(given.request_id)).status == 200


async def test_an_attempt_that_breaks_ends_its_job(tmp_path: Path) -> None:
    async def serve(given: Job) -> AttemptResult:
        raise ZeroDivisionError

    async with parts(tmp_path, serve=serve) as made:
        given = job()
        await made.scheduler.submit(given)
        end = await made.ended(given.request_id)
        assert (end.status, end.error_type) == (500, "internal_error")


async def test_bodies_beyond_the_memory_budget_are_read_when_their_turn_comes(tmp_path: Path) -> None:
    bodies: list[bytes] = []

    async def serve(given: Job) -> AttemptResult:
        bodies.append(given.body)
        return AttemptResult(outcome=outcome())

    async with parts(tmp_path, serve=serve, slots=0, settings={"queue_memory": 5000}) as made:
        jobs = [job(body=b"%d" % n) for n in range(200)]
        for given in jobs:
            await made.scheduler.submit(given)
        status = await made.scheduler.status(jobs[150].request_id)
        assert status is not None
        assert (status.position, status.job.body) == (150, b"150")
        made.pool.slots = 1
        made.pool.free(ECHO)
        await made.ended(jobs[-1].request_id)
        assert bodies == [b"%d" % n for n in range(200)]


async def test_a_full_disk_refuses_submits_holds_ends_and_heals(tmp_path: Path) -> None:
    gate = Gate()
    async with parts(tmp_path, serve=gate) as made:
        running, waiting = job(), job()
        await made.scheduler.submit(running)
        await made.scheduler.submit(waiting)
        await gate.began(1)
        await fill(made)
        with pytest.raises(StorageFull):
            await made.scheduler.submit(job(body=b"x" * 100_000))
        large = AttemptResult(outcome=outcome(body=b"x" * 100_000))
        gate.let_go(running.request_id, large)
        await gate.began(2)
        status = await made.scheduler.status(running.request_id)
        assert status is not None
        assert status.state is JobState.RUNNING
        await made.database.write(lambda db: db.execute("PRAGMA max_page_count = 1000000") and None)
        assert len((await made.ended(running.request_id)).body) == 100_000
        gate.open()
        assert (await made.ended(waiting.request_id)).status == 200
        assert len(made.ran) == 2


async def fill(made: Parts) -> None:
    """Leave a few pages: SQLite's own limit fails like a full disk."""
    pages = await made.database.write(lambda db: int(db.execute("PRAGMA page_count").fetchone()[0]))
    await made.database.write(lambda db: db.execute(f"PRAGMA max_page_count = {pages + 3}") and None)


async def test_a_listener_that_fails_hurts_nobody(tmp_path: Path) -> None:
    async with parts(tmp_path) as made:

        def broken(job: Job, end: Outcome) -> None:
            raise RuntimeError

        made.scheduler.on_finished(broken)
        given = job()
        await made.scheduler.submit(given)
        assert (await made.ended(given.request_id)).status == 200
