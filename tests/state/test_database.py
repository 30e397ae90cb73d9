"""The state database: group commit, isolation of writes, a full disk, and what a kill leaves."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from varvel.errors import StorageFull
from varvel.state import migrations, rows
from varvel.state.database import AHEAD, Database
from varvel.state.errors import Closed

Work = Callable[[sqlite3.Connection], int | None]


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = Database.open(tmp_path / "state.db")
    await opened.write(lambda db: db.execute("CREATE TABLE numbers (n INTEGER PRIMARY KEY, text TEXT)") and None)
    yield opened
    await opened.close()


def put(n: int, text: str = "") -> Work:
    return lambda db: db.execute("INSERT INTO numbers VALUES (?, ?)", (n, text)).lastrowid


async def numbers(database: Database) -> list[int]:
    return await database.read(lambda db: [n for (n,) in db.execute("SELECT n FROM numbers ORDER BY n")])


async def test_a_write_gives_its_result_and_is_seen_by_the_next_read(database: Database) -> None:
    assert await database.write(put(7)) == 7
    assert await numbers(database) == [7]


async def test_writes_that_arrive_together_share_transactions(database: Database) -> None:
    commits = Counting()
    database.join(commits)
    await asyncio.gather(*[database.write(put(n)) for n in range(500)])
    assert len(await numbers(database)) == 500
    assert commits.count < 50


async def test_a_failing_write_undoes_only_itself(database: Database) -> None:
    def half_done(db: sqlite3.Connection) -> None:
        db.execute("INSERT INTO numbers VALUES (2, '')")
        raise ValueError("no")

    results = await asyncio.gather(
        database.write(put(1)), database.write(half_done), database.write(put(3)), return_exceptions=True
    )
    assert results[0] == 1
    assert isinstance(results[1], ValueError)
    assert results[2] == 3
    assert await numbers(database) == [1, 3]


async def test_one_bad_item_of_a_batch_fails_alone(database: Database) -> None:
    def apply(db: sqlite3.Connection, items: list[int]) -> None:
        db.executemany("INSERT INTO numbers VALUES (?, '')", [(n,) for n in items])

    results = await asyncio.gather(*[database.batch(apply, n) for n in (1, 2, 2, 3)], return_exceptions=True)
    assert [type(result) for result in results] == [type(None), type(None), sqlite3.IntegrityError, type(None)]
    assert await numbers(database) == [1, 2, 3]


async def test_items_of_a_batch_keep_their_order(database: Database) -> None:
    seen: list[int] = []

    def apply(db: sqlite3.Connection, items: list[int]) -> None:
        seen.extend(items)

    await asyncio.gather(*[database.batch(apply, n) for n in range(2000)])
    assert seen == list(range(2000))


async def test_a_full_disk_keeps_nothing_by_halves_and_heals(database: Database) -> None:
    """SQLite's own page limit raises what a full disk raises, at the same places."""
    pages = await database.write(lambda db: int(db.execute("PRAGMA page_count").fetchone()[0]))
    await database.write(lambda db: db.execute(f"PRAGMA max_page_count = {pages + 5}") and None)
    writes = [database.write(put(n, "x" * 20_000)) for n in range(10)]
    results = await asyncio.gather(*writes, return_exceptions=True)
    assert any(isinstance(result, StorageFull) for result in results)
    kept = [n for n, result in enumerate(results) if not isinstance(result, BaseException)]
    assert await numbers(database) == kept
    await database.write(lambda db: db.execute("PRAGMA max_page_count = 1000000") and None)
    assert await database.write(put(100, "y" * 20_000)) == 100


async def test_closing_writes_what_waits_and_then_refuses(tmp_path: Path) -> None:
    database = Database.open(tmp_path / "state.db")
    await database.write(lambda db: db.execute("CREATE TABLE numbers (n INTEGER PRIMARY KEY, text TEXT)") and None)
    for n in range(100):
        database.write_soon(put(n))
    await database.close()
    with pytest.raises(Closed):
        await database.write(put(1000))
    again = Database.open(tmp_path / "state.db")
    assert await numbers(again) == list(range(100))
    await again.close()


async def test_readers_cannot_write(database: Database) -> None:
    with pytest.raises(sqlite3.OperationalError):
        await database.read(put(1))


async def test_pages_are_carried_into_the_database_beside_the_writer(database: Database) -> None:
    for start in range(0, 4 * AHEAD, AHEAD):
        await asyncio.gather(*[database.write(put(n, "x" * 1000)) for n in range(start, start + AHEAD)])
    size, deadline = 0, time.monotonic() + 60
    while size < AHEAD * 1000:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
        size = (await asyncio.to_thread(database.path.stat)).st_size
    assert len(await numbers(database)) == 4 * AHEAD


@pytest.mark.parametrize("count", [1, 2, 31, 32, 33, 63, 64, 65, 127, 200])
async def test_any_number_of_rows_is_inserted_in_order(database: Database, count: int) -> None:
    given = [(n, f"row {n}") for n in range(count)]
    await database.write(lambda db: rows.insert(db, "numbers", ("n", "text"), given))
    assert await database.read(lambda db: db.execute("SELECT n, text FROM numbers ORDER BY rowid").fetchall()) == given


def test_migrations_run_once_in_order_and_forward(tmp_path: Path) -> None:
    folder = tmp_path / "migrations"
    folder.mkdir()
    (folder / "0002_b.sql").write_text("-- second\nINSERT INTO t VALUES (2); -- done\n")
    (folder / "0001_a.sql").write_text("CREATE TABLE t (n INTEGER);\nINSERT INTO t VALUES (1);\n")
    connection = sqlite3.connect(tmp_path / "x.db", isolation_level=None)
    assert migrations.apply(connection, folder) == ["0001_a", "0002_b"]
    assert migrations.apply(connection, folder) == []
    (folder / "0003_c.sql").write_text("INSERT INTO t VALUES (3);\nINSERT INTO nowhere VALUES (1);\n")
    with pytest.raises(sqlite3.OperationalError):
        migrations.apply(connection, folder)
    assert [n for (n,) in connection.execute("SELECT n FROM t")] == [1, 2]
    connection.close()


WRITER = """
import asyncio, sys
from pathlib import Path
from varvel.state.database import Database

async def main():
    database = Database.open(Path(sys.argv[1]))
    await database.write(lambda db: db.execute("CREATE TABLE IF NOT EXISTS numbers (n INTEGER PRIMARY KEY)") and None)
    async def writer(first):
        for n in range(first, 10**9, 20):
            await database.write(lambda db: db.execute("INSERT INTO numbers VALUES (?)", (n,)) and None)
            print(n, flush=True)
    await asyncio.gather(*[writer(first) for first in range(20)])

asyncio.run(main())
"""


def test_what_was_acknowledged_is_there_after_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    child = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    acknowledged = [int(child.stdout.readline()) for _ in range(500)]
    os.kill(child.pid, signal.SIGKILL)
    acknowledged += [int(line) for line in child.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
    child.stdout.close()
    child.wait()
    connection = sqlite3.connect(path)
    kept = {n for (n,) in connection.execute("SELECT n FROM numbers")}
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
    assert set(acknowledged) <= kept


class Counting:
    """Counts transactions."""

    count = 0

    def before_commit(self, connection: sqlite3.Connection) -> None:
        self.count += 1

    def rolled_back(self) -> None: ...

    def committed(self) -> None:
        return None
