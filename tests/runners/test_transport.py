"""The client to runners, against real runners."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import AsyncIterator, Callable

import pytest
import websockets
from tests.runners.conftest import ECHO, World, call, until

from varvel.errors import InvalidRequest
from varvel.runners.errors import ResponseHeadersTooLarge, RunnerIncomplete, RunnerRefused
from varvel.runners.model import Slot
from varvel.runners.transport import Connections, request_head

CHUNK = b"x" * 65_536

STREAM = """
import asyncio
async def app(scope, receive, send):
    assert scope["type"] == "http"
    path = scope["path"]
    if path == "/endless":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        sent = 0
        while True:
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
            sent += 1
            print("sent", sent)
            await asyncio.sleep(0)
    if path == "/count":
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                print("gone after", size)
                return
            size += len(message["body"])
            if not message["more_body"]:
                break
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": str(size).encode()})
    if path == "/lazy":
        await asyncio.sleep(30)
    if path == "/hang":
        await receive()
        message = await receive()
        print(message["type"])
    if path == "/early":
        await send({"type": "http.response.start", "status": 413, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"no"})
    if path == "/half":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        import os
        await asyncio.sleep(0.05)
        os._exit(1)
    if path == "/headers":
        size = int(scope["query_string"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-large", b"x" * size)]})
        await send({"type": "http.response.body", "body": b""})
    if path == "/status":
        status = int(scope["query_string"])
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b""})
    if path == "/seen":
        import json
        await send({"type": "http.response.start", "status": 200, "headers": []})
        seen = [[n.decode(), v.decode()] for n, v in scope["headers"]]
        body = json.dumps([scope["method"], scope["path"], scope["query_string"].decode(), seen, scope["client"]])
        await send({"type": "http.response.body", "body": body.encode()})
"""


@pytest.fixture
async def slot(world: World) -> AsyncIterator[Slot]:
    pool = await world.pool()
    made = await pool.acquire(world.app(STREAM))
    yield made
    made.release()


async def parts(count: int, taken: Callable[[], None] = lambda: None) -> AsyncIterator[bytes]:
    for _ in range(count):
        taken()
        yield CHUNK


async def test_a_request_arrives_as_it_was_sent(slot: Slot) -> None:
    import json

    headers = [(b"x-mine", b"1"), (b"content-type", b"text/plain"), (b"x-forwarded-for", b"192.0.2.7, 10.0.0.1")]
    response = await slot.send("PUT", b"/seen?a=1&b=%20", headers, b"body")
    method, path, query, seen, client = json.loads(await response.read(10_000))
    assert (method, path, query) == ("PUT", "/seen", "a=1&b=%20")
    assert ["x-mine", "1"] in seen
    assert ["content-length", "4"] in seen
    assert client == ["192.0.2.7", 0]


async def test_headers_of_the_callers_connection_do_not_reach_the_app(slot: Slot) -> None:
    import json

    ours = [
        (b"connection", b"close"),
        (b"transfer-encoding", b"chunked"),
        (b"content-length", b"999"),
        (b"te", b"gzip"),
    ]
    response = await slot.send("POST", b"/seen", ours, b"12")
    seen = dict(json.loads(await response.read(10_000))[3])
    assert seen == {"host": "runner", "content-length": "2"}


async def test_a_connection_is_used_again(world: World) -> None:
    app, pool = world.app(ECHO), await world.pool()
    slot = await pool.acquire(app)
    for number in range(50):
        assert (await call(slot, body=b"%d" % number))[1] == b"%d" % number
    connections = slot._runner.connections  # type: ignore[attr-defined]
    assert len(connections._all) == 1
    slot.release()


@pytest.mark.parametrize("announced", [True, False])
async def test_a_large_body_streams_in(slot: Slot, announced: bool) -> None:
    headers = [(b"content-length", str(len(CHUNK) * 300).encode())] if announced else []
    response = await slot.send("POST", b"/count", headers, parts(300))
    assert await response.read(100) == str(len(CHUNK) * 300).encode()


async def test_a_body_that_is_not_read_is_not_swallowed_into_memory(slot: Slot) -> None:
    taken = 0

    def take() -> None:
        nonlocal taken
        taken += 1

    sending = asyncio.ensure_future(slot.send("POST", b"/lazy", [], parts(2000, take)))
    await asyncio.sleep(0.5)
    assert taken * len(CHUNK) < 4 * 1024 * 1024
    sending.cancel()


async def test_an_answer_that_is_not_read_makes_the_app_wait(world: World, slot: Slot) -> None:
    response = await slot.send("POST", b"/endless", [], b"")
    await asyncio.sleep(0.5)
    sent = len(world.logs.lines)
    assert sent * len(CHUNK) < 8 * 1024 * 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    size = 0
    async for chunk in response:
        size += len(chunk)
        if size > 200 * 1024 * 1024:
            break
    response.close()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30 * 1024


async def test_an_answer_over_the_limit_is_read_on_by_iterating(slot: Slot) -> None:
    response = await slot.send("POST", b"/endless", [], b"")
    first = await response.read(100_000)
    assert len(first) > 100_000
    assert not response.exhausted
    assert len(await response.__aiter__().__anext__()) > 0
    response.close()


async def test_the_app_hears_that_its_caller_went_away(world: World, slot: Slot) -> None:
    running = asyncio.ensure_future(slot.send("POST", b"/hang", [], b""))
    await asyncio.sleep(0.1)
    running.cancel()
    await until(lambda: world.logs.messages() == ["http.disconnect"])


async def test_a_caller_that_breaks_off_its_upload_breaks_the_request(world: World, slot: Slot) -> None:
    class WentAway(Exception):
        pass

    async def broken() -> AsyncIterator[bytes]:
        yield CHUNK
        await asyncio.sleep(0.1)
        raise WentAway

    with pytest.raises(WentAway):
        await slot.send("POST", b"/count", [], broken())
    await until(lambda: world.logs.messages() == [f"gone after {len(CHUNK)}"])


async def test_a_body_of_another_length_than_announced_is_refused(slot: Slot) -> None:
    with pytest.raises(InvalidRequest, match="has 131072 bytes where 7 were announced"):
        await slot.send("POST", b"/lazy", [(b"content-length", b"7")], parts(2))


async def test_an_answer_before_the_body_was_taken_is_an_answer(slot: Slot) -> None:
    response = await slot.send("POST", b"/early", [], parts(2000))
    assert (response.status, await response.read(100)) == (413, b"no")
    assert (await call(slot, b"/status?204"))[0] == 204


async def test_an_answer_that_breaks_off_is_incomplete(slot: Slot) -> None:
    response = await slot.send("POST", b"/half", [], b"")
    assert response.status == 200
    with pytest.raises(RunnerIncomplete):
        await response.read(100)
    assert not response.complete


async def test_response_headers_over_the_limit_fail_the_request(slot: Slot) -> None:
    assert (await call(slot, b"/headers?15000"))[0] == 200
    with pytest.raises(ResponseHeadersTooLarge):
        await call(slot, b"/headers?17000")
    assert (await call(slot, b"/headers?10"))[0] == 200


@pytest.mark.parametrize("status", [204, 304, 302, 404, 599])
async def test_any_status_passes(slot: Slot, status: int) -> None:
    assert await call(slot, b"/status?%d" % status) == (status, b"")
    assert await call(slot, b"/status?200") == (200, b"")


async def test_the_answer_to_head_has_no_body(slot: Slot) -> None:
    response = await slot.send("HEAD", b"/early", [], b"")
    assert (response.status, await response.read(10)) == (413, b"")
    assert (await call(slot, b"/status?200"))[0] == 200


@pytest.mark.parametrize(
    ("target", "headers"),
    [
        (b"/a b", []),
        (b"/\r\nx: y", []),
        (b"/", [(b"x", b"1\r\ny: 2")]),
        (b"/", [(b"x\ny", b"1")]),
        (b"/", [(b"x", b"1\ny: 2")]),
    ],
)
def test_no_header_can_begin_another_request(target: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(InvalidRequest):
        request_head("POST", target, headers, 0)


async def test_no_runner_refuses(world: World) -> None:
    with pytest.raises(RunnerRefused):
        await Connections(str(world.folder / "nobody.sock"), 1000).send("GET", b"/", [], b"")


@pytest.mark.parametrize(
    "answer",
    [b"this is no HTTP\r\n\r\n", b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", b"HTTP/1.1 2"],
)
async def test_what_is_not_http_breaks_the_request(world: World, answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    path = str(world.folder / "odd.sock")
    server = await asyncio.start_unix_server(serve, path)
    connections = Connections(path, 1000)
    with pytest.raises(RunnerIncomplete):
        await asyncio.wait_for(connections.send("GET", b"/", [], b""), 5)
    server.close()
    await server.wait_closed()


async def test_interim_answers_are_passed_over(world: World) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        await writer.drain()
        writer.close()

    path = str(world.folder / "odd.sock")
    server = await asyncio.start_unix_server(serve, path)
    response = await Connections(path, 1000).send("GET", b"/", [], b"")
    assert (response.status, response.headers, await response.read(10)) == (200, [(b"content-length", b"2")], b"ok")
    server.close()
    await server.wait_closed()


async def test_a_websocket_can_be_opened_through_the_runners_socket(world: World) -> None:
    source = """
    async def app(scope, receive, send):
        assert scope["type"] == "websocket"
        await receive()
        await send({"type": "websocket.accept"})
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                return
            print("frame")
            await send({"type": "websocket.send", "bytes": message["bytes"] * 2})
    """
    app, pool = world.app(source), await world.pool()
    slot = await pool.acquire(app)
    headers = {"x-fal-request-id": "W1", "x-fal-endpoint": "me/app/realtime"}
    async with websockets.unix_connect(
        slot.socket, "ws://runner/realtime", additional_headers=headers, max_size=None
    ) as socket:
        await socket.send(b"abc")
        assert await socket.recv() == b"abcabc"
        await socket.send(b"x" * 2_000_000)
        assert len(await socket.recv()) == 4_000_000
    slot.release()
    assert world.logs.messages(request_id="W1") == ["frame", "frame"]
