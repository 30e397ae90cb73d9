from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.gateway.rig import Rig

pytestmark = pytest.mark.asyncio(loop_scope="session")


@asynccontextmanager
async def _socket(shared: Rig, path: str, owner: str | None = "me", **options: Any) -> AsyncIterator[ClientConnection]:
    headers = {"Authorization": f"Key {shared.keys[owner]}"} if owner else {}
    url = shared.url.replace("http", "ws") + path
    async with connect(url, additional_headers=headers, **options) as socket:
        yield socket


async def _token(shared: Rig, owner: str = "me", path: str = "/tokens/", **body: Any) -> Any:
    client = await shared.client(owner)
    answer = await client.post(path, json={"allowed_apps": ["echo"], **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_frames_go_both_ways_untouched_and_the_session_is_recorded_once(shared: Rig) -> None:
    async with _socket(shared, "/run/me/echo/realtime?max_buffering=2") as socket:
        request_id = socket.response.headers["x-fal-request-id"] if socket.response else ""
        for frame in ("text", b"\x81\xa1a\x01", "x" * 300_000):
            await socket.send(frame)
            assert await socket.recv() == frame
        await socket.send("headers")
        headers = json.loads(await socket.recv())
        assert headers["x-fal-request-id"] == request_id
        assert headers["x-fal-caller-user-id"] == "me"
        assert "authorization" not in headers
        assert not await shared.rows("requests", request_id)
    row = await shared.record(request_id)
    assert (row["kind"], row["status_code"]) == ("realtime", 200)
    assert len(await shared.rows("billing", request_id)) == 1


async def test_the_apps_close_code_reaches_the_client(shared: Rig) -> None:
    async with _socket(shared, "/run/me/echo/realtime") as socket:
        await socket.send("close")
        with pytest.raises(ConnectionClosed):
            await socket.recv()
        assert (socket.close_code, socket.close_reason) == (4001, "as asked")


async def test_the_clients_close_reaches_the_app_and_frees_its_place(shared: Rig) -> None:
    async with _socket(shared, "/run/me/echo/realtime") as socket:
        await socket.send("one")
        await socket.recv()
        request_id = socket.response.headers["x-fal-request-id"] if socket.response else ""
        await socket.close(4002)
    await shared.record(request_id)
    for _ in range(100):
        if any(row.message == "the client left with 4002" for row in shared.lines.rows):
            break
        await asyncio.sleep(0.02)
    else:
        raise AssertionError("the app did not hear of it")


async def test_a_close_without_a_code_is_a_close(shared: Rig) -> None:
    async with _socket(shared, "/run/me/echo/realtime") as socket:
        request_id = socket.response.headers["x-fal-request-id"] if socket.response else ""
        socket.transport.write(b"\x88\x80\x00\x00\x00\x00")  # a close frame with nothing in it
    assert (await shared.record(request_id))["status_code"] == 200


async def test_a_client_that_vanishes_frees_its_place_and_is_recorded(shared: Rig) -> None:
    async with _socket(shared, "/run/me/echo/realtime") as socket:
        await socket.send("one")
        await socket.recv()
        request_id = socket.response.headers["x-fal-request-id"] if socket.response else ""
        socket.transport.abort()
    row = await shared.record(request_id)
    assert (row["kind"], row["status_code"]) == ("realtime", 499)
    for _ in range(200):
        if shared.pool.in_flight(next(iter(shared.apps.known))) == 0:
            break
        await asyncio.sleep(0.02)
    assert shared.pool.in_flight(next(iter(shared.apps.known))) == 0
    said = [line.message for line in await shared.lines.request_logs(request_id)]
    assert "asked to cancel" in said


async def test_a_runner_that_dies_closes_the_socket_and_is_recorded(shared: Rig) -> None:
    async with _socket(shared, "/run/me/common/realtime") as socket:
        request_id = socket.response.headers["x-fal-request-id"] if socket.response else ""
        await socket.send("exit")
        with pytest.raises(ConnectionClosed):
            await socket.recv()
        assert socket.close_code == 1011
    row = await shared.record(request_id)
    assert (row["status_code"], row["error_type"]) == (503, "runner_disconnected")


@pytest.mark.parametrize(
    ("path", "owner", "status"),
    [
        ("/run/me/echo/realtime", None, 401),
        ("/run/me/echo/realtime", "other", 404),
        ("/run/me/nothing/realtime", "me", 404),
        ("/queue/me/echo", "me", 404),
        ("/run/me/echo/refused", "me", 403),
    ],
)
async def test_a_handshake_that_may_not_be_is_refused(shared: Rig, path: str, owner: str | None, status: int) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with _socket(shared, path, owner):
            pass
    assert refused.value.response.status_code == status


async def test_a_token_opens_the_app_that_it_was_made_for(shared: Rig) -> None:
    for token in (
        await _token(shared),
        (await _token(shared, path="/tokens/realtime", duration=60, allowed_apps=["me/echo/realtime"]))["token"],
    ):
        async with _socket(shared, f"/run/me/echo/realtime?fal_jwt_token={token}", None) as socket:
            await socket.send("hello")
            assert await socket.recv() == "hello"
        client = await shared.client(None)
        streamed = await client.post(f"/run/me/echo/events?fal_jwt_token={token}", json={"events": 1})
        assert streamed.text == 'data: {"i": 0}\n\n'


async def test_a_token_is_good_for_nothing_else(shared: Rig) -> None:
    elsewhere, theirs = await _token(shared, allowed_apps=["open"]), await _token(shared, "other")
    old = await _token(shared, token_expiration=0.5)
    await asyncio.sleep(1.1)
    for token in (elsewhere, old, elsewhere[:-2], "x", "a.b.c", "é"):
        async with _socket(shared, f"/run/me/echo/realtime?fal_jwt_token={token}", None) as socket:
            assert json.loads(await socket.recv()) == {"status": "error", "error": "Unauthorized"}
            with pytest.raises(ConnectionClosed):
                await socket.recv()
    with pytest.raises(InvalidStatus) as refused:
        async with _socket(shared, f"/run/me/echo/realtime?fal_jwt_token={theirs}", None):
            pass
    assert refused.value.response.status_code == 404


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[]", b'{"allowed_apps": []}', b'{"allowed_apps": ["x"], "duration": 0}']
)
async def test_a_token_order_that_makes_no_sense_is_a_bad_request(shared: Rig, body: bytes) -> None:
    client = await shared.client()
    answer = await client.post("/tokens/", content=body)
    assert (answer.status_code, answer.json()["error_type"]) == (400, "bad_request")


async def test_tokens_are_made_with_a_key_only(shared: Rig) -> None:
    client = await shared.client(None)
    assert (await client.post("/tokens/", json={"allowed_apps": ["echo"]})).status_code == 401
    assert (await (await shared.client()).get("/tokens/")).status_code == 405
