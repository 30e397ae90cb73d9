"""The few ASGI pieces that the gateway is written with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import msgspec

from varvel.errors import VarvelError, data_plane_error
from varvel.http import answer_whole
from varvel.ids import uuid7
from varvel.queue.model import Headers

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

encode = msgspec.json.Encoder().encode
JSON = (b"content-type", b"application/json")


class ClientGone(Exception):
    """The client closed its connection before its request was whole."""


async def answer(send: Send, status: int, headers: Headers, body: bytes) -> None:
    """Send a whole reply; `headers` must hold its `content-length` if it shall have one."""
    if await answer_whole(send, status, headers, body):
        return
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def answer_json(
    send: Send, status: int, value: Any, request_id: str | None = None, headers: Headers | None = None
) -> None:
    """Send a JSON reply of our own."""
    body = encode(value)
    own = [JSON, (b"content-length", b"%d" % len(body)), (b"x-fal-request-id", (request_id or uuid7()).encode())]
    await answer(send, status, own + (headers or []), body)


async def answer_error(send: Send, error: VarvelError, request_id: str | None = None) -> None:
    """Send an error in the data plane's shape."""
    headers = [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]
    headers.append((b"x-fal-error-type", error.data_type.encode()))
    await answer_json(send, error.status, data_plane_error(error.message, error.data_type), request_id, headers)


async def answer_not_found(send: Send, request_id: str | None = None) -> None:
    """Send the queue's answer for a request that is not there, or not the caller's."""
    await answer_json(send, 404, {"status": "NOT_FOUND"}, request_id)


def header(scope: Scope, name: bytes) -> str | None:
    """The first value of a request header (name in lower case)."""
    for key, value in scope["headers"]:
        if key == name:
            return str(value.decode("latin-1"))
    return None
