from __future__ import annotations

import asyncio
import uuid

from varvel.telemetry.model import LogRow
from varvel.telemetry.tail import Dropped, RequestLines, TailHub


def line(ts: int, app: str = "me/ocr", request_id: str = "") -> LogRow:
    return LogRow(
        ts=ts, owner="me", app=app, revision="r", job_id="j", level="info", message=str(ts), request_id=request_id
    )


def request_id(ms: int) -> str:
    text = f"{ms:012x}7abc8{uuid.uuid4().hex[:15]}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


async def test_a_subscriber_gets_the_lines_that_it_accepts_from_now_on_in_order() -> None:
    hub = TailHub()
    hub.publish(line(1))
    tail = hub.subscribe(lambda row: row.ts % 2 == 0)
    for ts in range(2, 8):
        hub.publish(line(ts))
    assert [(await anext(tail)) for _ in range(3)] == [line(2), line(4), line(6)]


async def test_lines_of_other_apps_do_not_reach_a_subscriber_of_some() -> None:
    hub = TailHub()
    tail = hub.subscribe(lambda row: True, apps=["me/a", "me/b"])
    for ts, app in enumerate(["me/a", "me/c", "me/b"]):
        hub.publish(line(ts, app))
    assert [row.app for row in tail.ready() if isinstance(row, LogRow)] == ["me/a", "me/b"]


async def test_a_slow_reader_loses_lines_and_is_told_how_many_and_where() -> None:
    hub = TailHub()
    tail = hub.subscribe(lambda row: True, 2)
    for ts in range(5):
        hub.publish(line(ts))
    assert await anext(tail) == line(0)
    hub.publish(line(5))
    assert [await anext(tail) for _ in range(3)] == [line(1), Dropped(3), line(5)]


async def test_a_reader_that_waits_gets_a_line_when_it_comes_and_ends_when_it_is_closed() -> None:
    hub = TailHub()
    tail = hub.subscribe(lambda row: True)
    waiting = asyncio.ensure_future(anext(tail))
    await asyncio.sleep(0)
    hub.publish(line(1))
    assert await waiting == line(1)
    ending = asyncio.ensure_future(anext(tail, None))
    await asyncio.sleep(0)
    tail.close()
    assert await ending is None
    assert len(hub) == 0


def test_lines_of_a_request_are_remembered_whole() -> None:
    memory = RequestLines(lines=100, each=10, began_ms=1000)
    mine, other = request_id(2000), request_id(2000)
    memory.add(line(1, request_id=mine))
    memory.add(line(2, request_id=other))
    memory.add(line(3, request_id=mine))
    assert [row.ts for row in memory.get(mine) or []] == [1, 3]
    assert memory.get(request_id(2001)) == []


def test_memory_never_claims_to_know_what_it_forgot_or_never_saw() -> None:
    memory = RequestLines(lines=4, each=3, began_ms=1000)
    assert memory.get(request_id(999)) is None
    assert memory.get("not an id") is None
    first, second = request_id(2000), request_id(2001)
    for ts in range(3):
        memory.add(line(ts, request_id=first))
    for ts in range(4):
        memory.add(line(ts, request_id=second))
    assert memory.get(first) is None
    assert memory.get(second) is None
    assert memory.get(request_id(2002)) == []
