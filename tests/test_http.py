"""What differs from uvicorn's own protocol: whole answers, keep-alive, and answers that must not be written."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn

from varvel.http import Headers, Protocol, answer_whole

OK = b"HTTP/1.1 200 OK\r\n"


def answering(status: int, headers: Headers, body: bytes) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        assert await answer_whole(send, status, headers, body)

    return app


@asynccontextmanager
async def connected(app: Any, **options: Any) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, http=Protocol, lifespan="off", log_config=None, date_header=False, **options)
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        await asyncio.sleep(0.005)
    reader, writer = await asyncio.open_connection(*listener.getsockname()[:2])
    try:
        yield reader, writer
    finally:
        writer.close()
        server.should_exit = True
        await serving
        listener.close()


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, method: str = "GET", body: int = 0) -> bytes:
    """The head of the answer, and `body` bytes after it."""
    writer.write(f"{method} / HTTP/1.1\r\nhost: x\r\n\r\n".encode())
    return await reader.readuntil(b"\r\n\r\n") + (await reader.readexactly(body) if body else b"")


async def test_requests_on_one_connection_are_answered_in_order() -> None:
    count = iter(range(100))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        number = next(count)
        await asyncio.sleep(0.02 if number == 0 else 0)
        await answer_whole(send, 200, [(b"content-length", b"1")], b"%d" % number)

    async with connected(app) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n" * 3)
        for number in range(3):
            assert await reader.readuntil(b"\r\n\r\n") + await reader.readexactly(1) == (
                OK + b"server: uvicorn\r\ncontent-length: 1\r\n\r\n%d" % number
            )


async def test_a_head_request_gets_the_length_and_no_body() -> None:
    async with connected(answering(200, [(b"content-length", b"5")], b"12345"), server_header=False) as streams:
        assert await ask(*streams, "HEAD") == OK + b"content-length: 5\r\n\r\n"
        assert await ask(*streams, "GET", 5) == OK + b"content-length: 5\r\n\r\n12345"


async def test_an_answer_without_a_length_goes_in_chunks() -> None:
    async with connected(answering(200, [], b"12345"), server_header=False) as streams:
        assert await ask(*streams, "GET", 15) == OK + b"transfer-encoding: chunked\r\n\r\n5\r\n12345\r\n0\r\n\r\n"


async def test_a_large_body_arrives_whole() -> None:
    body = bytes(range(256)) * 4096
    async with connected(answering(200, [(b"content-length", b"%d" % len(body))], body)) as streams:
        assert (await ask(*streams, "GET", len(body))).endswith(b"\r\n\r\n" + body)


@pytest.mark.parametrize("value", [b"a\r\nset-cookie: b", b"a\nb", b"a\0b"])
async def test_a_header_that_would_end_its_line_is_never_written(value: bytes) -> None:
    headers = [(b"content-length", b"0"), (b"x", value)]
    async with connected(answering(200, headers, b""), server_header=False) as streams:
        assert (await ask(*streams)).startswith(b"HTTP/1.1 500 ")


async def test_an_idle_connection_is_closed_and_a_busy_one_is_not() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(1.3)
        await answer_whole(send, 200, [(b"content-length", b"0")], b"")

    async with connected(app, server_header=False, timeout_keep_alive=1) as (reader, writer):
        for _ in range(2):
            assert await ask(reader, writer) == OK + b"content-length: 0\r\n\r\n"
        async with asyncio.timeout(3):
            assert await reader.read() == b""


@pytest.mark.parametrize(
    ("sent", "header", "place"),
    [
        (b"FOO /v1/meta HTTP/1.1\r\n\r\n", b"x-fal-request-id", ("detail",)),
        (b"GET /v1/meta HTTP/1.1\r\nno colon\r\n\r\n", b"x-request-id", ("error", "message")),
        (b"POST /run/a/b HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nno size\r\n", b"x-fal-request-id", ("detail",)),
    ],
)
async def test_what_is_not_http_is_told_so_in_the_shape_of_its_place(
    sent: bytes, header: bytes, place: tuple[str, ...]
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "http.disconnect"

    async with connected(app) as (reader, writer):
        writer.write(sent)
        async with asyncio.timeout(5):
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"\r\n" + header + b": " in head
    told = json.loads(body)
    for name in place:
        told = told[name]
    assert "not a request of HTTP/1.1" in told


@pytest.mark.parametrize("size", [1, 1000, 300_000])
async def test_a_body_in_pieces_of_any_size_is_received_as_it_was_sent(size: int) -> None:
    sent = bytes(range(256)) * (10 if size == 1 else 2_000)
    got = bytearray()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        more = True
        while more:
            message = await receive()
            got.extend(message["body"])
            more = message["more_body"]
            await asyncio.sleep(0)
        assert await answer_whole(send, 200, [(b"content-length", b"0")], b"")

    async with connected(app) as (reader, writer):
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        for start in range(0, len(sent), size):
            piece = sent[start : start + size]
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        writer.write(b"0\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(OK)
    assert bytes(got) == sent
