"""What every telemetry store must do, embedded or behind a URL: the suite of the seam."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from tests.telemetry.conftest import Engine
from tests.telemetry.outbox import MemoryOutbox
from tests.telemetry.rows import bill, event, now_us, payload, request

from varvel.errors import TelemetryUnavailable
from varvel.ids import uuid7
from varvel.settings import Settings
from varvel.telemetry.closed import closed_spans
from varvel.telemetry.model import LogRow
from varvel.telemetry.service import Telemetry

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Server:
    """A telemetry service and the outbox that it empties."""

    def __init__(self, settings: Settings) -> None:
        self.outbox = MemoryOutbox()
        self.telemetry = Telemetry(settings, self.outbox)


async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, socket: Path) -> None:
    """A TCP connection to the engine's socket: what a ClickHouse server looks like from here."""
    inner_reader, inner_writer = await asyncio.open_unix_connection(socket)

    async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                target.write(data)
                await target.drain()
        target.close()

    await asyncio.gather(copy(reader, inner_writer), copy(inner_reader, writer))


@pytest_asyncio.fixture(loop_scope="module", scope="module", params=["embedded", "url"])
async def server(request: pytest.FixtureRequest) -> AsyncIterator[Server]:
    with tempfile.TemporaryDirectory(prefix="vt-") as name:
        data = Path(name)
        if request.param == "embedded":
            made = Server(Settings(data=data))
            await made.telemetry.start()
            yield made
            await made.telemetry.stop()
            return
        engine = Engine(data)
        await engine.supervisor.start()
        listening = await asyncio.start_server(lambda r, w: relay(r, w, engine.socket), "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        made = Server(Settings(data=data / "data", telemetry_url=f"http://someone:secret@127.0.0.1:{port}"))
        await made.telemetry.start()
        yield made
        await made.telemetry.stop()
        listening.close()
        await engine.close()


def say(server: Server, message: str, *, app: str = "me/ocr", request_id: str = "") -> int:
    return server.telemetry.take(
        app=app, revision="rev", job_id="job", level="info", message=message, request_id=request_id
    )


async def test_what_ended_or_was_logged_before_a_barrier_is_visible_after_it(server: Server) -> None:
    assert server.telemetry.healthy
    for number in range(5):
        one = request(owner="seen")
        server.outbox.add(one, payload(one), event("seen"))
        server.outbox.add(bill(one))
        say(server, f"line {number}", app="seen/ocr")
        await server.telemetry.barrier()
        for table in ("requests", "billing", "payloads", "events", "logs"):
            rows = await server.telemetry.select(f"SELECT count() AS n FROM {table} WHERE owner = 'seen'")
            assert rows == [{"n": number + 1}], table


async def test_parameters_and_types_come_through(server: Server) -> None:
    sql = "SELECT {a:String} AS a, {b:Array(String)} AS b, toUInt64({c:UInt64}) AS c, nan AS d, toFloat64(0.5) AS e"
    (row,) = await server.telemetry.select(sql, {"a": "it's \n", "b": ["x'", "é"], "c": 2**63})
    assert row == {"a": "it's \n", "b": ["x'", "é"], "c": 2**63, "d": None, "e": 0.5}


async def test_a_result_streams_in_the_asked_format(server: Server) -> None:
    pieces = [piece async for piece in server.telemetry.stream("SELECT {n:Int64} AS n", {"n": 7}, format="JSONEachRow")]
    assert b"".join(pieces) == b'{"n":7}\n'


async def test_a_follower_gets_lines_at_once_and_in_order(server: Server) -> None:
    tail = server.telemetry.tail(lambda row: row.app == "live/app", 100)
    times = [say(server, str(n), app="live/app") for n in range(3)]
    rows = [await anext(tail) for _ in range(3)]
    assert [row.ts for row in rows if isinstance(row, LogRow)] == times
    tail.close()


async def test_lines_of_a_request_are_given_from_memory_and_from_the_store_alike(server: Server) -> None:
    mine = uuid7()
    old = "00000000-0000-7000-8000-000000000000"  # made long before this process began
    for request_id in (mine, old):
        first = say(server, "one", request_id=request_id)
        say(server, "two", request_id=request_id)
        lines = await server.telemetry.request_logs(request_id)
        assert [line.message for line in lines] == ["one", "two"]
        assert [line.message for line in await server.telemetry.request_logs(request_id, first)] == ["two"]
    assert await server.telemetry.request_logs(uuid7()) == []


async def test_buckets_that_were_asked_for_are_closed_in_the_background(server: Server) -> None:
    day = 86_400_000_000
    since = now_us() // day * day - 3 * day + 3_600_000_000
    server.outbox.add(request(owner="closed", at=since + 5))
    await server.telemetry.barrier()
    server.telemetry.keep_closed("day Test/Zone", {since: since + day, since + 3 * day: since + 4 * day})
    async with asyncio.timeout(30):
        while not (found := await closed_spans(server.telemetry, "day Test/Zone", since, since + 5 * day)):
            await asyncio.sleep(0.1)
    assert [(begin, one.until) for begin, one in found.items()] == [(since, since + day)]
    rows = await server.telemetry.select("SELECT request_count FROM requests_closed WHERE step = 'day Test/Zone'")
    assert rows == [{"request_count": 1}]


async def test_retention_keeps_what_is_young(server: Server) -> None:
    one = request(owner="young")
    server.outbox.add(one)
    await server.telemetry.barrier()
    assert await server.telemetry.retain() == []


async def test_a_store_that_is_away_is_said_so_and_catches_up(tmp_path: Path) -> None:
    unused = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
    port = unused.sockets[0].getsockname()[1]
    unused.close()
    away = Server(Settings(data=tmp_path, telemetry_url=f"http://127.0.0.1:{port}"))
    await away.telemetry.start()
    say(away, "kept")
    away.outbox.add(event())
    assert not away.telemetry.healthy
    with pytest.raises(TelemetryUnavailable):
        await away.telemetry.select("SELECT 1")
    with pytest.raises(TelemetryUnavailable):
        await away.telemetry.barrier()
    await away.telemetry.stop()
    assert len(away.outbox.rows) == 1
    assert len(Server(Settings(data=tmp_path, telemetry_url="http://127.0.0.1:1")).telemetry.spool.oldest()) == 1


async def test_a_store_that_cannot_be_opened_keeps_nobody_from_starting(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="vt-") as name:
        data = Path(name)
        (data / "telemetry.lock").mkdir()
        server = Server(Settings(data=data))
        await server.telemetry.start()
        assert not server.telemetry.healthy
        server.outbox.add(event("late"))
        say(server, "late", app="late/app")
        (data / "telemetry.lock").rmdir()
        async with asyncio.timeout(20):
            while not server.telemetry.healthy:
                await asyncio.sleep(0.05)
        await server.telemetry.barrier()
        for table in ("events", "logs"):
            assert await server.telemetry.select(f"SELECT count() AS n FROM {table} WHERE owner = 'late'") == [{"n": 1}]
        await server.telemetry.stop()
