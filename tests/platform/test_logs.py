"""History and live stream of log lines, over HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from tests.watching import Watched, watching

from varvel.ids import iso, iso_micros, now

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def watched(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Watched]:
    """One server for the whole file; each test has owners of its own."""
    async with watching(tmp_path_factory.mktemp("logs"), log_heartbeat=0.2) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def bad(watched: Watched) -> httpx.AsyncClient:
    return await watched.owner("bad")


async def history(client: httpx.AsyncClient, body: Any = None, **params: Any) -> dict[str, Any]:
    answer = await client.post("/serverless/logs/history", params=params, json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_a_line_is_in_the_history_at_once_with_its_labels(watched: Watched) -> None:
    me = await watched.owner("me0")
    ts = watched.say("me0/ocr", "one line", request_id="r-1", endpoint="/", labels={"shard": "7"})
    page = await history(me)
    assert page["next_cursor"] is None
    assert page["has_more"] is False
    (line,) = page["items"]
    assert set(line) == {"timestamp", "level", "message", "app", "revision", "labels"}
    assert line["timestamp"] == iso_micros(ts)
    assert (line["level"], line["message"], line["app"], line["revision"]) == ("stdout", "one line", "me0/ocr", "rev-1")
    assert line["labels"]["fal_request_id"] == "r-1"
    assert line["labels"]["fal_job_id"] == "job-1"
    assert line["labels"]["shard"] == "7"


async def test_pages_neither_repeat_nor_skip_while_lines_arrive(watched: Watched) -> None:
    me = await watched.owner("me1")
    wanted = [watched.say("me1/ocr", f"line {number}") for number in range(57)]
    seen: list[str] = []
    cursor: dict[str, Any] = {}
    while True:
        page = await history(me, limit=10, **cursor)
        seen += [item["timestamp"] for item in page["items"]]
        watched.say("me1/ocr", "late")
        if not page["has_more"]:
            break
        assert page["next_cursor"] == seen[-1]
        cursor = {"cursor": page["next_cursor"]}
    assert seen == [iso_micros(ts) for ts in reversed(wanted)]


async def test_filters_come_as_parameters_and_as_a_list_of_labels(watched: Watched) -> None:
    me = await watched.owner("me2")
    watched.say("me2/a", "first", level="info", request_id="q1", labels={"k": "x"})
    watched.say("me2/b", "second", level="error", request_id="q2", source="grpc-register", revision="rev-2")
    watched.say("me2/b", 'boom {"traceback": 1}', level="stderr")

    async def messages(body: Any = None, **params: Any) -> list[str]:
        return [item["message"] for item in (await history(me, body, **params))["items"]]

    boom = 'boom {"traceback": 1}'
    assert await messages() == [boom, "second", "first"]
    assert await messages(app_id="me2/a,me2/b") == [boom, "second", "first"]
    assert await messages(app_id=["me2/a"]) == ["first"]
    assert await messages(level="ERROR") == [boom, "second"]
    assert await messages(run_source="grpc-register") == ["second"]
    assert await messages(revision="rev-2", request_id="q2", job_id="job-1") == ["second"]
    assert await messages(search="FIRST") == ["first"]
    assert await messages(traceback="false") == ["second", "first"]
    assert await messages(traceback="true") == [boom, "second", "first"]
    assert await messages([{"key": "k", "value": "x"}]) == ["first"]
    assert await messages([{"key": "fal_request_id", "value": ["q1", "q2"], "condition_type": "in"}]) == [
        "second",
        "first",
    ]
    assert await messages([{"key": "fal_request_id", "value": "q1", "condition_type": "not_equals"}]) == [
        boom,
        "second",
    ]
    assert await messages(start=iso(now() + 60), end=iso(now() + 120)) == []
    assert await messages(end=iso(now() - 60)) == []


async def test_nobody_reads_the_lines_of_another(watched: Watched) -> None:
    await watched.owner("me3")
    you = await watched.owner("you3")
    watched.say("me3/ocr", "secret", labels={"owner": "you"})
    assert (await history(you))["items"] == []
    for operation in ("history", "stream"):
        answer = await you.post(f"/serverless/logs/{operation}", params={"app_id": "you3/x,me3/ocr"})
        assert answer.status_code == 403
        assert answer.json()["error"]["type"] == "authorization_error"
        assert (await watched.client(None).post(f"/serverless/logs/{operation}")).status_code == 401


@pytest.mark.parametrize(
    ("params", "body"),
    [
        ({"limit": 0}, None),
        ({"limit": 1001}, None),
        ({"limit": "x"}, None),
        ({"cursor": "yesterday"}, None),
        ({"level": "loud"}, None),
        ({"run_source": "elsewhere"}, None),
        ({"traceback": "perhaps"}, None),
        ({"app_id": "no-owner"}, None),
        ({"app_id": ",".join(f"anyone/a{number}" for number in range(51))}, None),
        ({"start": "soon"}, None),
        ({"start": "2026-01-02", "end": "2026-01-01"}, None),
        ({}, {"key": "k", "value": "v"}),
        ({}, [{"key": "k"}]),
        ({}, [{"key": "k", "value": []}]),
        ({}, [{"key": "k", "value": "v", "condition_type": "like"}]),
        ({}, [{"key": "k", "value": "v", "more": 1}]),
        ({}, [{"key": "k", "value": "v"}] * 51),
    ],
    ids=str,
)
async def test_what_cannot_be_meant_is_refused_with_400(bad: httpx.AsyncClient, params: Any, body: Any) -> None:
    answer = await bad.post("/serverless/logs/history", params=params, json=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["type"] == "validation_error"


# The stream


@dataclass
class Event:
    kind: str
    id: str
    data: dict[str, Any]


async def events(client: httpx.AsyncClient, *, last: str | None = None, **params: Any) -> AsyncGenerator[Event | str]:
    """Events of a stream, and its comments as text."""
    headers = {"Last-Event-ID": last} if last else {}
    async with client.stream("POST", "/serverless/logs/stream", params=params, headers=headers) as answer:
        assert answer.status_code == 200, await answer.aread()
        assert answer.headers["content-type"].startswith("text/event-stream")
        found = Event("message", "", {})
        async for line in answer.aiter_lines():
            name, _, value = line.partition(": ")
            if line.startswith(":"):
                yield value
            elif name == "event":
                found.kind = value
            elif name == "id":
                found.id = value
            elif name == "data":
                found.data = json.loads(value)
            elif not line and found.data:
                yield found
                found = Event("message", "", {})


async def take(stream: AsyncIterator[Event | str], count: int) -> list[Event]:
    found: list[Event] = []
    async with asyncio.timeout(15):
        async for event in stream:
            if isinstance(event, Event):
                found.append(event)
            if len(found) == count:
                break
    return found


async def test_a_stream_has_history_then_live_lines_without_gap_or_repeat(watched: Watched) -> None:
    me = await watched.owner("me5")
    said = [watched.say("me5/ocr", f"before {number}") for number in range(2500)]

    async def go_on() -> None:
        for number in range(1500):
            said.append(watched.say("me5/ocr", f"meanwhile {number}"))
            watched.say("me5/other", "not asked for")
            if number % 10 == 0:
                await asyncio.sleep(0.001)

    speaking = asyncio.create_task(go_on())
    async with aclosing(events(me, start=iso(now() - 3600), app_id="me5/ocr")) as stream:
        seen = await take(stream, 4000)
    await speaking
    assert [event.id for event in seen] == [iso_micros(ts) for ts in said]
    assert seen[0].data["message"] == "before 0"
    assert seen[0].data["timestamp"] == seen[0].id


async def test_without_a_start_a_stream_is_live_only(watched: Watched) -> None:
    me = await watched.owner("me6")
    watched.say("me6/ocr", "old")
    async with aclosing(events(me, level="error")) as stream:
        assert await anext(stream) == "varvel"
        watched.say("me6/ocr", "low", level="info")
        watched.say("me6/ocr", "new", level="error")
        (seen,) = await take(stream, 1)
    assert seen.data["message"] == "new"


async def test_a_stream_goes_on_behind_the_last_event_after_a_restart(tmp_path: Path) -> None:
    async with watching(tmp_path) as before:
        key = (await before.parts.keys.add_owner("me7")).key
        for number in range(10):
            before.say("me7/ocr", f"line {number}")
        async with aclosing(events(before.client(key), start=iso(now() - 60))) as stream:
            seen = await take(stream, 4)
    async with watching(tmp_path) as after:
        after.say("me7/ocr", "line 10")
        async with aclosing(events(after.client(key), last=seen[-1].id)) as stream:
            seen += await take(stream, 7)
            after.say("me7/ocr", "line 11")
            seen += await take(stream, 1)
    assert [event.data["message"] for event in seen] == [f"line {number}" for number in range(12)]


async def test_a_quiet_stream_sends_comments(watched: Watched) -> None:
    me = await watched.owner("me8")
    async with aclosing(events(me)) as stream, asyncio.timeout(5):
        assert [await anext(stream) for _ in range(3)] == ["varvel", "heartbeat", "heartbeat"]


async def test_a_stream_ends_at_its_end(watched: Watched) -> None:
    me = await watched.owner("me9")
    async with asyncio.timeout(10):
        async with aclosing(events(me, start=iso(now() - 60), end=iso(now() + 0.5))) as stream:
            watched.say("me9/ocr", "in time")
            seen = [event async for event in stream if isinstance(event, Event)]
        assert [event.data["message"] for event in seen] == ["in time"]
        past = events(me, start=iso(now() - 60), end=iso(now() - 30))
        assert [event async for event in past if isinstance(event, Event)] == []


async def test_a_slow_reader_is_told_what_it_lost_and_slows_nobody(tmp_path: Path) -> None:
    async with watching(tmp_path, log_tail_buffer=50) as watched:
        me = await watched.owner("me10")
        async with aclosing(events(me)) as stream:
            assert await anext(stream) == "varvel"
            # No await in between: the reader has no turn, whatever its speed.
            for number in range(200):
                watched.say("me10/ocr", f"line {number}")
            seen = await take(stream, 51)
            watched.say("me10/ocr", "after")
            seen += await take(stream, 1)
    assert [event.kind for event in seen] == ["message"] * 50 + ["dropped", "message"]
    assert seen[50].data == {"count": 150}
    assert seen[51].data["message"] == "after"


async def test_a_reader_that_goes_away_is_forgotten(watched: Watched) -> None:
    me = await watched.owner("me11")
    await nobody_follows(watched)
    async with aclosing(events(me)) as stream:
        await anext(stream)
        assert len(watched.telemetry.hub) == 1
    await nobody_follows(watched)


async def nobody_follows(watched: Watched) -> None:
    async with asyncio.timeout(5):
        while len(watched.telemetry.hub):
            await asyncio.sleep(0.02)


async def test_while_the_store_is_down_history_says_so_and_a_live_stream_goes_on(tmp_path: Path) -> None:
    async with watching(tmp_path) as watched:
        me = await watched.owner("me12")
        assert watched.telemetry.supervisor is not None
        await watched.telemetry.supervisor.stop()
        watched.telemetry._went_down()
        for operation, params in (("history", {}), ("stream", {"start": iso(now() - 60)})):
            answer = await me.post(f"/serverless/logs/{operation}", params=params)
            assert answer.status_code == 503
            assert answer.headers["retry-after"]
        assert len(watched.telemetry.hub) == 0
        async with aclosing(events(me)) as stream:
            await anext(stream)
            watched.say("me12/ocr", "still here")
            (seen,) = await take(stream, 1)
        assert seen.data["message"] == "still here"
