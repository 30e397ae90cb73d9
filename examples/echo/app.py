"""The smallest Varvel app: one ASGI callable, no framework, no requirements.

POST / answers the JSON that it got. Three fields make it do something first:

    {"sleep": 2}         waits two seconds
    {"print": "hello"}   prints a line, which lands in the logs of this request
    {"status": 503}      answers with that status
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


async def app(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    """Serve one ASGI connection: the lifespan of the process, or one HTTP request."""
    if scope["type"] == "lifespan":
        await _lifespan(receive, send)
    elif scope["type"] != "http":
        await send({"type": "websocket.close", "code": 1000, "reason": "this app speaks HTTP only"})
    elif scope["path"] != "/":
        await _answer(send, 404, {"detail": f"Path {scope['path']} not found"})
    elif scope["method"] != "POST":
        await _answer(send, 405, {"detail": "Method Not Allowed"})
    else:
        await _echo(await _read(receive), send)


async def _echo(body: bytes, send: Send) -> None:
    try:
        value = json.loads(body or b"null")
    except ValueError:
        await _answer(send, 422, {"detail": "the body is not JSON"})
        return
    wishes = value if isinstance(value, dict) else {}
    if "print" in wishes:
        print(wishes["print"], flush=True)
    sleep, status = wishes.get("sleep", 0), wishes.get("status", 200)
    if not isinstance(sleep, int | float) or not 0 <= sleep <= 3600:
        await _answer(send, 422, {"detail": "sleep must be a number of seconds from 0 to 3600"})
    elif not isinstance(status, int) or not 200 <= status <= 599:
        await _answer(send, 422, {"detail": "status must be an HTTP status from 200 to 599"})
    else:
        await asyncio.sleep(sleep)
        await _answer(send, status, value)


async def _read(receive: Receive) -> bytes:
    """The whole body: it comes in pieces, the last of which says that no more follow."""
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


async def _answer(send: Send, status: int, value: Any) -> None:
    body = b"" if status in (204, 304) else json.dumps(value).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _lifespan(receive: Receive, send: Send) -> None:
    """Start-up and shutdown; a real app would load its model before it says that start-up is complete."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
