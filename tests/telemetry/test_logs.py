"""Each log line once and in order, with a time of its own; on disk while the store is away, within a bound."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tests.telemetry.conftest import Engine

from varvel.errors import TelemetryUnavailable
from varvel.telemetry.ahead import WriteAhead
from varvel.telemetry.client import StoreClient
from varvel.telemetry.delivery import Rejects
from varvel.telemetry.logs import Logs
from varvel.telemetry.spool import Spool
from varvel.telemetry.tail import RequestLines, TailHub

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Clock:
    def __init__(self) -> None:
        self.now = 1_750_000_000.0

    def __call__(self) -> float:
        return self.now


def logs(
    engine: Engine, folder: Path, *, up: asyncio.Event | None = None, bound: int = 10**8, clock: Clock | None = None
) -> Logs:
    memory = RequestLines(lines=100, each=100, began_ms=0)
    rejects, spool = Rejects(folder / "rejected"), Spool(folder / "spool", bound)
    ahead = WriteAhead(folder / "spool", 10**8)
    given = up or engine.up
    return Logs(engine.client, spool, rejects, TailHub(), memory, ahead, up=given, period=0.05, clock=clock or Clock())


def take(sink: Logs, app: str, message: str = "hello") -> int:
    return sink.take(app=app, revision="rev", job_id="job", level="STDOUT", message=message)


async def stored(engine: Engine, app: str) -> list[str]:
    rows = await engine.client.select("SELECT message FROM logs WHERE app = {app:String} ORDER BY ts", {"app": app})
    return [row["message"] for row in rows]


async def test_a_line_is_in_the_store_after_a_barrier_with_its_labels(engine: Engine, tmp_path: Path) -> None:
    sink = logs(engine, tmp_path)
    sink.start()
    ts = sink.take(
        app="me/labelled", revision="rev", job_id="job", level="INFO", message="hi", request_id="r1", labels={"k": "v"}
    )
    await sink.barrier()
    (row,) = await engine.client.select("SELECT * FROM logs WHERE app = 'me/labelled'")
    assert (row["ts"], row["level"], row["owner"], row["message"]) == (ts, "info", "me", "hi")
    assert row["labels"] == {
        "fal_app_name": "me/labelled",
        "fal_app_id": "rev",
        "fal_request_id": "r1",
        "fal_job_id": "job",
        "fal_source": "gateway",
        "k": "v",
    }
    await sink.stop()


async def test_the_label_of_a_request_and_the_lines_own_request_never_differ(engine: Engine, tmp_path: Path) -> None:
    sink = logs(engine, tmp_path)
    sink.start()
    said: dict[str, Any] = {"app": "me/agree", "revision": "rev", "job_id": "job", "level": "info", "message": "hi"}
    sink.take(**said, request_id="r1", labels={"fal_request_id": "r2"})
    sink.take(**said, labels={"fal_request_id": "r3"})
    await sink.barrier()
    rows = await engine.client.select(
        "SELECT request_id, labels['fal_request_id'] AS label FROM logs WHERE app = 'me/agree' ORDER BY ts"
    )
    assert [(row["request_id"], row["label"]) for row in rows] == [("r1", "r1"), ("r3", "r3")]
    await sink.stop()


async def test_times_only_rise_over_clock_steps_and_restarts(engine: Engine, tmp_path: Path) -> None:
    clock = Clock()
    sink = logs(engine, tmp_path, clock=clock)
    sink.start()
    times = [take(sink, "me/clock") for _ in range(3)]
    clock.now -= 3600
    times += [take(sink, "me/clock") for _ in range(3)]
    clock.now += 7200
    times.append(take(sink, "me/clock"))
    await sink.stop()
    clock.now -= 86400
    again = logs(engine, tmp_path, clock=clock)
    times.append(take(again, "me/clock"))
    assert times == sorted(set(times))
    assert times[6] == int((clock.now + 86400) * 1_000_000)


async def test_a_line_keeps_the_time_at_which_it_was_printed_unless_a_later_one_came_before(
    engine: Engine, tmp_path: Path
) -> None:
    clock = Clock()
    sink = logs(engine, tmp_path, clock=clock)
    early, future = clock.now - 0.5, clock.now + 999
    first = sink.take(app="a/b", revision="", job_id="", level="info", message="", at=early)
    second = sink.take(app="a/b", revision="", job_id="", level="info", message="", at=early - 0.1)
    third = sink.take(app="a/b", revision="", job_id="", level="info", message="", at=future)
    assert (first, second, third) == (int(early * 1e6), int(early * 1e6) + 1, int(clock.now * 1e6))


async def test_while_the_store_is_away_lines_are_spooled_and_arrive_in_order_later(
    engine: Engine, tmp_path: Path
) -> None:
    up = asyncio.Event()
    sink = logs(engine, tmp_path, up=up)
    sink.start()
    for n in range(30):
        take(sink, "me/spooled", str(n))
        if n % 10 == 0:
            await asyncio.sleep(0.1)
    with pytest.raises(TelemetryUnavailable):
        await sink.barrier()
    await sink.stop()
    assert await stored(engine, "me/spooled") == []
    up.set()
    again = logs(engine, tmp_path, up=up)  # a restart of the server with the store back
    take(again, "me/spooled", "30")
    again.start()
    await again.barrier()
    assert await stored(engine, "me/spooled") == [str(n) for n in range(31)]
    await again.stop()


async def test_lines_that_arrived_although_the_insert_seemed_to_fail_are_not_there_twice(
    engine: Engine, tmp_path: Path
) -> None:
    sink = logs(engine, tmp_path)
    for n in range(10):
        take(sink, "me/once", str(n))
    await engine.client.insert("logs", b"\n".join(sink._buffer[:6]))
    Spool(tmp_path / "spool", 10**6).append(sink._buffer)
    again = logs(engine, tmp_path)
    again.start()
    await again.barrier()
    async with asyncio.timeout(5):
        while len(await stored(engine, "me/once")) < 10:
            await asyncio.sleep(0.02)
    assert await stored(engine, "me/once") == [str(n) for n in range(10)]
    await again.stop()


async def test_lines_beyond_the_bound_of_the_spool_are_counted_and_said(engine: Engine, tmp_path: Path) -> None:
    up = asyncio.Event()
    sink = logs(engine, tmp_path, up=up, bound=3000)
    sink.start()
    for n in range(100):
        take(sink, "me/flood", str(n))
    async with asyncio.timeout(5):
        while not sink.lost:
            await asyncio.sleep(0.02)
    up.set()
    async with asyncio.timeout(5):
        while not (found := await stored(engine, "me/flood")) or "lost" not in found[-1]:
            await asyncio.sleep(0.05)
    kept = found[:-1]
    assert kept == [str(n) for n in range(len(kept))]
    assert 0 < len(kept) < 100
    assert found[-1].startswith(f"{100 - len(kept)} log lines were lost")
    assert sink.lost == 100 - len(kept)
    await sink.stop()


async def test_text_that_is_no_utf8_is_kept_with_a_mark_in_its_place(engine: Engine, tmp_path: Path) -> None:
    sink = logs(engine, tmp_path)
    sink.start()
    take(sink, "me/odd", "a\udc80b\x00c\u2028\n")
    await sink.barrier()
    assert await stored(engine, "me/odd") == ["a?b\x00c\u2028\n"]
    await sink.stop()


async def test_lines_of_a_killed_server_are_in_the_store_before_anyone_reads_there(
    engine: Engine, tmp_path: Path
) -> None:
    killed = logs(engine, tmp_path)
    times = [take(killed, "me/killed", str(n)) for n in range(10)]
    await asyncio.sleep(0)
    await engine.client.insert("logs", b"\n".join(killed._buffer[:4]))  # of these it did not hear any more
    again = logs(engine, tmp_path)
    assert again.last_ts == times[-1]
    again.start()
    await again.barrier()
    assert await stored(engine, "me/killed") == [str(n) for n in range(10)]
    await again.stop()
    assert not list((tmp_path / "spool").glob("*.ahead"))
    third = logs(engine, tmp_path)
    third.start()
    await third.barrier()
    await third.stop()
    assert await stored(engine, "me/killed") == [str(n) for n in range(10)]


async def test_a_line_is_written_down_before_a_live_reader_has_it(engine: Engine, tmp_path: Path) -> None:
    hub, folder = TailHub(), tmp_path / "spool"
    ahead, memory = WriteAhead(folder, 10**6), RequestLines(lines=9, each=9, began_ms=0)
    up = asyncio.Event()
    spool = Spool(folder, 10**6)
    sink = Logs(engine.client, spool, Rejects(tmp_path / "r"), hub, memory, ahead, up=up, period=9, clock=Clock())
    subscription = hub.subscribe(lambda row: True)

    async def read() -> int:
        await anext(subscription)
        return len(WriteAhead(folder, 10**6).left)

    reading = asyncio.create_task(read())
    await asyncio.sleep(0)
    take(sink, "me/seen")
    assert await reading == 1


async def test_stopping_delivers_what_was_taken(engine: Engine, tmp_path: Path) -> None:
    sink = logs(engine, tmp_path)
    sink.start()
    for n in range(40_000):
        take(sink, "me/last", str(n))
    await sink.stop()
    assert len(await stored(engine, "me/last")) == 40_000


async def test_lines_go_to_the_spool_when_the_store_does_not_answer(tmp_path: Path, engine: Engine) -> None:
    nobody = StoreClient(tmp_path / "nobody.sock")
    up = asyncio.Event()
    up.set()  # nobody has noticed yet that it went
    spool = Spool(tmp_path / "spool", 10**6)
    memory = RequestLines(lines=9, each=9, began_ms=0)
    ahead = WriteAhead(tmp_path / "spool", 10**6)
    sink = Logs(nobody, spool, Rejects(tmp_path / "r"), TailHub(), memory, ahead, up=up, period=0.01, clock=Clock())
    sink.start()
    take(sink, "me/nobody")
    async with asyncio.timeout(5):
        while not spool:
            await asyncio.sleep(0.01)
    await sink.stop()
    await nobody.close()
    assert len(Spool(tmp_path / "spool", 10**6).oldest()) == 1
