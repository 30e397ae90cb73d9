from __future__ import annotations

import asyncio
import time

import httpx
import pytest

from tests.gateway.rig import Rig

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_events_go_on_as_they_come_and_the_end_is_recorded(shared: Rig) -> None:
    client = await shared.client()
    arrived: list[float] = []
    events: list[str] = []
    async with client.stream("POST", "/run/me/echo/events", json={"events": 3, "pause": 0.2}) as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        request_id = answer.headers["x-fal-request-id"]
        async for line in answer.aiter_lines():
            if line:
                events.append(line)
                arrived.append(time.monotonic())
    assert events == [f'data: {{"i": {i}}}' for i in range(3)]
    assert arrived[2] - arrived[0] > 0.3
    [row] = await shared.rows("requests", request_id)
    assert (row["kind"], row["status_code"]) == ("stream", 200)
    assert row["duration"] > 0.5
    [bill] = await shared.rows("billing", request_id)
    assert bill["billable_units"] == 3


async def test_a_runner_that_dies_in_a_stream_cuts_it_off_visibly(shared: Rig) -> None:
    client = await shared.client()
    async with client.stream("POST", "/run/me/common/events", json={"events": 1, "break": True}) as answer:
        request_id = answer.headers["x-fal-request-id"]
        with pytest.raises(httpx.RemoteProtocolError):
            await answer.aread()
    row = await shared.record(request_id)
    assert (row["status_code"], row["error_type"]) == (502, "runner_incomplete_response")


async def test_a_client_that_leaves_a_stream_frees_the_runner(shared: Rig) -> None:
    client = await shared.client()
    asking = {"events": 1000, "pause": 0.05}
    async with client.stream("POST", "/run/me/echo/events", json=asking) as answer:
        request_id = answer.headers["x-fal-request-id"]
        async for line in answer.aiter_lines():
            if '"i": 6' in line:
                break
    row = await shared.record(request_id)
    assert (row["status_code"], row["error_type"], row["kind"]) == (499, "client_disconnected", "stream")
    for _ in range(100):
        asked = [line for line in shared.lines.rows if line.request_id == request_id]
        if asked and shared.pool.in_flight(next(iter(shared.apps.known))) == 0:
            break
        await asyncio.sleep(0.02)
    assert [line.message for line in asked] == ["asked to cancel"]
    assert shared.pool.in_flight(next(iter(shared.apps.known))) == 0
