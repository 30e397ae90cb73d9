"""The machine's clock is set forward and back by an hour while requests wait, run and have ended."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.queue.parts import Parts, job, outcome, parts

from varvel.ids import now
from varvel.queue.model import AttemptResult, Job, JobState

HOUR = 3600.0


class Clock:
    """Wall time that can be set."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return now() + self.ahead


async def _state(made: Parts, given: Job) -> JobState | None:
    status = await made.scheduler.status(given.request_id)
    return status.state if status is not None else None


@pytest.mark.parametrize("step", [HOUR, -HOUR])
async def test_a_start_deadline_is_so_many_seconds_away_whatever_the_clock_says(tmp_path: Path, step: float) -> None:
    clock = Clock()
    async with parts(tmp_path, slots=0, clock=clock) as made:
        soon, late = job(start_deadline=clock() + 1.5), job(start_deadline=clock() + 600)
        for given in (soon, late):
            await made.scheduler.submit(given)
        clock.ahead += step
        # Something else comes and is dispatched, by which deadlines are looked at, too.
        await made.scheduler.submit(job(start_deadline=clock() + 600))
        await asyncio.sleep(0.2)
        assert await _state(made, soon) is await _state(made, late) is JobState.QUEUED
        end = await made.ended(soon.request_id)
        assert (end.status, end.error_type) == (504, "request_timeout")
        assert await _state(made, late) is JobState.QUEUED


async def test_a_start_deadline_holds_over_a_restart_after_the_clock_was_set(tmp_path: Path) -> None:
    clock = Clock()
    async with parts(tmp_path, slots=0, clock=clock) as made:
        clock.ahead += HOUR
        given = job(start_deadline=clock() + 600)
        await made.scheduler.submit(given)
        await made.restart()
        await asyncio.sleep(0.2)
        assert await _state(made, given) is JobState.QUEUED


@pytest.mark.parametrize("restarts", [False, True])
async def test_results_expire_after_their_time_whatever_the_clock_says(tmp_path: Path, restarts: bool) -> None:
    clock = Clock()
    async with parts(tmp_path, clock=clock, settings={"result_ttl": 4.0, "result_days": 0}) as made:
        for step in (HOUR, -2 * HOUR):
            given = job()
            await made.scheduler.submit(given)
            await made.ended(given.request_id)
            clock.ahead += step
            if restarts:
                await made.restart()
            await asyncio.sleep(1)
            assert await _state(made, given) is JobState.DONE
            async with asyncio.timeout(20):
                while await _state(made, given) is not None:
                    await asyncio.sleep(0.1)


async def test_nothing_is_tried_again_or_ends_twice_when_the_clock_is_set_in_a_request(tmp_path: Path) -> None:
    clock = Clock()

    async def serve(_: Job) -> AttemptResult:
        clock.ahead += -HOUR if clock.ahead else HOUR
        return AttemptResult(outcome=outcome())

    async with parts(tmp_path, clock=clock, serve=serve) as made:
        given = [job() for _ in range(4)]
        for each in given:
            await made.scheduler.submit(each)
        for each in given:
            assert (await made.ended(each.request_id)).status == 200
        assert made.ran == [each.request_id for each in given]
