"""What is kept of runner seconds: each once, through kills and full disks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from varvel.errors import StorageFull
from varvel.state.database import Database
from varvel.state.outbox import Outbox
from varvel.state.runner_seconds import KeptSeconds
from varvel.telemetry.model import RunnerRow


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = Database.open(tmp_path / "state.db")
    yield opened
    await opened.close()


def row(name: str, until: int = 1) -> RunnerRow:
    return RunnerRow(
        row_id=name, owner="me", app="me/app", environment="main", machine_type="S", since=0, until=until, seconds=1.0
    )


async def handed_on(database: Database, outbox: Outbox) -> list[str]:
    with suppress(StorageFull):
        await database.write(lambda db: None)  # all that was put before was tried
    await asyncio.sleep(0)
    batches = await outbox.peek("runner_states", 1_000_000)
    return [json.loads(line)["row_id"] for batch in batches for line in batch.body.splitlines()]


async def kept(database: Database) -> dict[str, list[str]]:
    rows = await database.read(lambda db: db.execute("SELECT name, rows FROM runner_intervals").fetchall())
    return {name: [item["row_id"] for item in json.loads(body)] for name, body in rows}


async def test_what_goes_on_is_replaced_and_goes_when_it_is_done(database: Database) -> None:
    outbox = Outbox(database)
    seconds = KeptSeconds(database, outbox)
    seconds.save("a", [], [row("a1")])
    seconds.save("b", [], [row("b1")])
    seconds.save("a", [], [row("a1"), row("a2")])
    assert await handed_on(database, outbox) == []
    assert await kept(database) == {"a": ["a1", "a2"], "b": ["b1"]}
    seconds.save("a", [row("a3")], [])
    assert await handed_on(database, outbox) == ["a3"]
    assert await kept(database) == {"b": ["b1"]}


async def test_the_next_server_hands_on_what_a_killed_one_had_kept_and_only_once(database: Database) -> None:
    outbox = Outbox(database)
    KeptSeconds(database, outbox).save("a", [row("a0")], [row("a1")])
    KeptSeconds(database, outbox).save("b", [], [row("b1"), row("b2")])
    await handed_on(database, outbox)
    assert await KeptSeconds(database, outbox).recover() == 3
    assert await handed_on(database, outbox) == ["a0", "a1", "b1", "b2"]
    assert await KeptSeconds(database, outbox).recover() == 0
    assert await handed_on(database, outbox) == ["a0", "a1", "b1", "b2"]


async def limit(database: Database, pages: int) -> None:
    await database.write(lambda db: db.execute(f"PRAGMA max_page_count = {pages}") and None)


async def test_rows_that_found_no_room_are_kept_when_there_is_room_again(database: Database) -> None:
    """SQLite's own page limit raises what a full disk raises, at the same places."""
    outbox = Outbox(database)
    seconds = KeptSeconds(database, outbox)
    seconds.save("a", [], [row("a1")])
    await handed_on(database, outbox)
    pages = await database.read(lambda db: int(db.execute("PRAGMA page_count").fetchone()[0]))
    await limit(database, pages)
    large = [row("x" * 3000 + str(number)) for number in range(10)]
    seconds.save("a", large, [])
    assert await handed_on(database, outbox) == []
    assert await kept(database) == {"a": ["a1"]}, "nothing of it was kept, so a kill now counts what was kept before"
    await limit(database, 1_000_000)
    seconds.save("b", [row("b1")], [row("b2")])
    assert await handed_on(database, outbox) == [*(item.row_id for item in large), "b1"]
    assert await kept(database) == {"b": ["b2"]}, "a1 is in the rows that are done now"
    seconds.retry()
    assert len(await handed_on(database, outbox)) == 11
