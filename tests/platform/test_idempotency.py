"""Writes that are sent twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from starlette.responses import Response

from varvel.auth.model import Caller
from varvel.errors import InvalidRequest
from varvel.platform.idempotency import Idempotency
from varvel.state.database import Database

ME, YOU = Caller("me", "k1", "ADMIN"), Caller("you", "k2", "ADMIN")


class Work:
    """Counts how often it is done."""

    def __init__(self, *statuses: int) -> None:
        self.done = 0
        self._statuses = statuses

    async def __call__(self) -> Response:
        await asyncio.sleep(0.01)
        self.done += 1
        status = self._statuses[min(self.done, len(self._statuses)) - 1]
        return Response(f"reply {self.done}", status)


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database.open(tmp_path / "state.db")
    yield database
    await database.close()


async def test_the_work_is_done_once_also_by_repeats_that_come_meanwhile_and_after_a_restart(
    database: Database,
) -> None:
    work, memory = Work(200), Idempotency(database, 600)
    replies = await asyncio.gather(*(memory.once(ME, "k", "flush", {"a": 1}, work) for _ in range(5)))
    replies.append(await Idempotency(database, 600).once(ME, "k", "flush", {"a": 1}, work))
    assert work.done == 1
    assert {(reply.status_code, bytes(reply.body)) for reply in replies} == {(200, b"reply 1")}


async def test_without_a_name_and_for_other_names_and_owners_it_is_done_each_time(database: Database) -> None:
    work, memory = Work(200), Idempotency(database, 600)
    for caller, key in ((ME, None), (ME, None), (ME, "a"), (ME, "b"), (YOU, "a")):
        await memory.once(caller, key, "flush", {}, work)
    assert work.done == 5


async def test_other_parameters_under_the_same_name_are_refused(database: Database) -> None:
    work, memory = Work(200), Idempotency(database, 600)
    await memory.once(ME, "k", "flush", {"app": "a"}, work)
    for operation, parameters in (("flush", {"app": "b"}), ("delete", {"app": "a"})):
        with pytest.raises(InvalidRequest, match="Idempotency-Key"):
            await memory.once(ME, "k", operation, parameters, work)
    assert work.done == 1


async def test_a_reply_is_forgotten_after_its_time(database: Database) -> None:
    at = [1000.0]
    work, memory = Work(200), Idempotency(database, 600, lambda: at[0])
    await memory.once(ME, "k", "flush", {}, work)
    at[0] += 599
    await memory.once(ME, "k", "flush", {}, work)
    at[0] += 2
    await memory.once(ME, "k", "flush", {}, work)
    assert work.done == 2


async def test_a_failure_of_ours_is_tried_again(database: Database) -> None:
    work, memory = Work(500, 204), Idempotency(database, 600)
    statuses = [(await memory.once(ME, "k", "flush", {}, work)).status_code for _ in range(3)]
    assert statuses == [500, 204, 204]
    assert work.done == 2
