"""The embedded store speaks ClickHouse's HTTP interface, cancels what nobody waits for, and dies with its parent."""

from __future__ import annotations

import asyncio
import io
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pyarrow.parquet
import pytest
from tests.telemetry.conftest import Engine

from varvel.errors import TelemetryUnavailable
from varvel.telemetry.client import QueryTooSlow, StoreRefused

pytestmark = pytest.mark.asyncio(loop_scope="module")
SLOW = "SELECT count() FROM numbers(1000000000000) WHERE sipHash64(number) = 7"


async def running(engine: Engine) -> int:
    rows = await engine.client.select(
        "SELECT count() AS n FROM system.processes WHERE query LIKE '%sipHash64(number)%'"
    )
    return int(rows[0]["n"]) - 1  # that query itself


async def until_idle(engine: Engine) -> float:
    began = time.monotonic()
    while await running(engine):
        assert time.monotonic() - began < 10
        await asyncio.sleep(0.02)
    return time.monotonic() - began


async def until_busy(engine: Engine) -> None:
    for _ in range(200):
        if await running(engine):
            return
        await asyncio.sleep(0.02)
    raise AssertionError("the query never began")


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("String", "it's \\n \t \n é \\"),
        ("Array(String)", ["it's", "a\\b", "new\nline", ""]),
        ("Int64", -(2**62)),
        ("Float64", 0.1),
        ("Bool", True),
        ("Nullable(String)", None),
        ("Map(String, String)", {"a": "it's"}),
        ("Array(Int64)", []),
    ],
)
async def test_a_parameter_comes_back_as_it_was(engine: Engine, kind: str, value: Any) -> None:
    assert await engine.client.select(f"SELECT {{x:{kind}}} AS x", {"x": value}) == [{"x": value}]


async def test_parameters_of_queries_at_the_same_time_do_not_mix(engine: Engine) -> None:
    async def one(number: int) -> int:
        rows = await engine.client.select("SELECT {x:Int64} AS x, {y:Int64} AS y", {"x": number, "y": number * 7})
        assert rows[0]["y"] == number * 7
        return int(rows[0]["x"])

    assert await asyncio.gather(*(one(number) for number in range(300))) == list(range(300))


async def test_settings_of_one_query_are_not_those_of_the_next(engine: Engine) -> None:
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(engine.socket))) as session:
        for threads, expected in (("1", "1"), (None, "2")):
            query = {"query": "SELECT getSetting('max_threads')", "wait_end_of_query": "1"}
            for _ in range(12):  # more often than there are threads
                async with session.get(
                    "http://x/", params=query | ({"max_threads": threads} if threads else {})
                ) as got:
                    assert (await got.text()).strip() == expected


async def test_the_interface_answers_as_clickhouse_does(engine: Engine) -> None:
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(engine.socket))) as session:
        async with session.get("http://x/ping") as got:
            assert await got.text() == "Ok.\n"
        async with session.post("http://x/?query_id=abc", data=b"SELECT 1 AS a FORMAT CSVWithNames") as got:
            assert (await got.text(), got.headers["X-ClickHouse-Query-Id"]) == ('"a"\n1\n', "abc")
        async with session.post("http://x/?query=SELECT+no_such_column&wait_end_of_query=1") as got:
            assert (got.status, got.headers["X-ClickHouse-Exception-Code"]) == (400, "47")
            assert "UNKNOWN_IDENTIFIER" in await got.text()
        async with session.post("http://x/?no;such=1", data=b"SELECT 1") as got:
            assert got.status == 400
        async with session.get("http://x/elsewhere") as got:
            assert got.status == 404


async def test_a_refused_statement_carries_the_number_of_the_error(engine: Engine) -> None:
    with pytest.raises(StoreRefused) as refusal:
        await engine.client.select("SELECT * FROM no_such_table")
    assert refusal.value.code == 60


async def test_a_query_that_takes_too_long_is_given_up_and_says_so(engine: Engine) -> None:
    with pytest.raises(QueryTooSlow):
        await engine.client.select(SLOW, timeout=0.5)
    await until_idle(engine)


async def test_a_query_ends_when_its_caller_goes_away(engine: Engine) -> None:
    asking = asyncio.create_task(engine.client.select(SLOW))
    await until_busy(engine)
    asking.cancel()
    assert await until_idle(engine) < 2


async def test_a_stream_ends_when_its_reader_goes_away(engine: Engine) -> None:
    pieces = engine.client.stream("SELECT sipHash64(number) FROM numbers(1000000000000)", format="JSONEachRow")
    await anext(pieces)
    await pieces.aclose()  # type: ignore[attr-defined]
    assert await until_idle(engine) < 2


async def test_slow_queries_on_every_reader_hold_up_no_insert_and_no_sign_of_life(engine: Engine) -> None:
    slow = [asyncio.create_task(engine.client.select(SLOW)) for _ in range(12)]
    await asyncio.sleep(0.5)
    began = time.monotonic()
    await engine.client.insert("logs", b'{"ts":1,"message":"x","owner":"unhurried"}')
    assert await engine.client.ping()
    assert time.monotonic() - began < 3
    assert not any(each.done() for each in slow)
    for each in slow:
        each.cancel()
    assert await until_idle(engine) < 2


@pytest.mark.parametrize("format", ["Parquet", "JSONEachRow", "CSVWithNames"])
async def test_a_long_result_streams_whole(engine: Engine, format: str) -> None:
    pieces = [piece async for piece in engine.client.stream("SELECT number AS n FROM numbers(300000)", format=format)]
    data = b"".join(pieces)
    if format == "Parquet":
        assert pyarrow.parquet.read_table(io.BytesIO(data)).column("n").to_pylist() == list(range(300_000))
    else:
        assert data.count(b"\n") == 300_000 + (format == "CSVWithNames")


async def test_a_stream_that_breaks_in_the_middle_is_not_taken_for_a_whole_one(engine: Engine) -> None:
    with pytest.raises((TelemetryUnavailable, StoreRefused)):
        async for _ in engine.client.stream(
            "SELECT throwIf(number = 5000000) FROM numbers(10000000)", format="JSONEachRow"
        ):
            pass


async def test_no_text_in_a_row_is_taken_for_an_end_of_the_data(engine: Engine) -> None:
    texts = [
        ";",
        "; DROP TABLE logs;",
        "'",
        '"',
        "--",
        "/*",
        "\n\n",
        "\n;\n",
        "FORMAT CSV",
        "{x:String}",
        "\\",
        "\x00",
        "é",
    ]
    lines = [msgspec.json.encode({"ts": n, "owner": "odd", "message": text}) for n, text in enumerate(texts)]
    await engine.client.insert("logs", b"\n\n".join(lines) + b"\n\n\n")
    rows = await engine.client.select("SELECT message FROM logs WHERE owner = 'odd' ORDER BY ts")
    assert [row["message"] for row in rows] == texts


def command(folder: Path) -> list[str]:
    arguments = ["--data", str(folder / "s"), "--socket", str(folder / "s.sock"), "--memory", str(1024**3)]
    return [sys.executable, "-m", "varvel.telemetry.engine", *arguments]


async def start(folder: Path) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(*command(folder), stdin=pipe, stdout=pipe)


async def test_an_engine_ends_with_its_parent_and_the_next_waits_until_it_has(folder: Path) -> None:
    first = await start(folder)
    assert first.stdout is not None
    assert first.stdin is not None
    assert await first.stdout.readline() == b"ready\n"
    second = await start(folder)
    await asyncio.sleep(0.3)
    assert first.returncode is None
    first.stdin.close()  # as when the parent was killed
    assert await asyncio.wait_for(first.wait(), 10) == 0
    assert second.stdout is not None
    assert await asyncio.wait_for(second.stdout.readline(), 20) == b"ready\n"
    second.terminate()  # as with Ctrl-C: the parent has something to deliver yet
    await asyncio.sleep(0.2)
    assert second.returncode is None
    assert second.stdin is not None
    second.stdin.close()
    assert await asyncio.wait_for(second.wait(), 10) == 0


async def test_an_engine_whose_parent_dies_while_it_starts_ends_and_leaves_the_folder_free(folder: Path) -> None:
    for delay in (0.05, 0.3, 0.6, 0.9):
        orphan = subprocess.Popen(command(folder), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        await asyncio.sleep(delay)
        assert orphan.stdin is not None
        assert orphan.stdout is not None
        orphan.stdout.close()
        orphan.stdin.close()
        await asyncio.wait_for(asyncio.to_thread(orphan.wait), 10)
    heir = await start(folder)
    assert heir.stdout is not None
    assert heir.stdin is not None
    assert await asyncio.wait_for(heir.stdout.readline(), 20) == b"ready\n"
    waiting = await start(folder)
    assert waiting.stdin is not None
    await asyncio.sleep(0.5)
    waiting.stdin.close()  # dies while it waits for the folder: it must not take it later
    assert await asyncio.wait_for(waiting.wait(), 5) == 1
    heir.stdin.close()
    assert await asyncio.wait_for(heir.wait(), 10) == 0
