"""Apps that tests deploy: they run in runners, so they import nothing of ours."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from typing import Any

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

waiting: dict[str, asyncio.Event] = {}


def prints_and_fails() -> Any:
    """Not there, but says something private before it turns out."""
    print("the password is swordfish")
    raise RuntimeError("no model file")


class _Late:
    def __getattr__(self, name: str) -> Any:
        return prints_and_fails()


late = _Late()
"""As `late.app` an app that fails at its start."""


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def _body(receive: Receive) -> bytes:
    body = b""
    while True:
        message = await receive()
        body += bytes(message.get("body", b""))
        if message["type"] == "http.disconnect" or not message.get("more_body"):
            return body


async def _reply(send: Send, status: int, body: bytes, headers: list[tuple[str, str]] | None = None) -> None:
    given = headers or [("content-type", "application/json"), ("content-length", str(len(body)))]
    encoded = [(name.encode(), value.encode()) for name, value in given]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Does what the JSON that it gets says, by path."""
    if scope["type"] == "lifespan":
        await _lifespan(receive, send)
        return
    if scope["type"] == "websocket":
        await _socket(scope, receive, send)
        return
    path, headers = scope["path"], {name.decode(): value.decode() for name, value in scope["headers"]}
    request_id = headers.get("x-fal-request-id", "")
    if path == "/size":
        await _size(receive, send)
        return
    if path == "/events":
        await _events(request_id, send, receive)
        return
    body = await _body(receive)
    if path.endswith("/cancel"):
        event = waiting.get(request_id)
        print("asked to cancel")
        if event is not None:
            event.set()
        await _reply(send, 200, b"{}")
        return
    asked = json.loads(body) if body else {}
    if asked.get("print"):
        print(asked["print"])
    if asked.get("sleep"):
        await asyncio.sleep(asked["sleep"])
    if asked.get("exit"):
        os._exit(3)
    if asked.get("until_cancelled"):
        event = waiting.setdefault(request_id, asyncio.Event())
        await asyncio.wait_for(event.wait(), 30)
        await _reply(send, 499, b'{"detail":"cancelled by the app"}')
        return
    if "env" in asked:
        await _reply(send, 200, json.dumps(os.environ.get(asked["env"])).encode())
        return
    if "announce" in asked:
        length = [("content-type", "text/plain"), ("content-length", str(asked["announce"]))]
        await _reply(send, 200, b"x" * asked["send"], length)
        return
    if "answer" in asked:
        big = b"y" * asked["answer"]
        await _reply(send, 200, big, [("content-type", "text/plain"), ("content-length", str(len(big)))])
        return
    seen = {
        "path": path,
        "query": scope["query_string"].decode(),
        "method": scope["method"],
        "headers": headers,
        "asked": asked,
        "client": scope["client"][0] if scope["client"] else None,
    }
    answer = json.dumps(seen).encode()
    extra = [(str(name), str(value)) for name, value in asked.get("headers", {}).items()]
    length = [("content-type", "application/json"), ("content-length", str(len(answer)))]
    await _reply(send, asked.get("status", 200), answer, length + extra)


async def never_ready(scope: Scope, receive: Receive, send: Send) -> None:
    """Does not come to the end of its start."""
    await asyncio.sleep(3600)


async def _size(receive: Receive, send: Send) -> None:
    size = 0
    while True:
        message = await receive()
        size += len(message.get("body", b""))
        if not message.get("more_body"):
            break
    await _reply(send, 200, json.dumps({"size": size}).encode())


async def _events(request_id: str, send: Send, receive: Receive) -> None:
    """One event, and the next only after somebody has asked to cancel; then the end."""
    waiting[request_id] = asyncio.Event()
    head = [(b"content-type", b"text/event-stream"), (b"x-fal-billable-units", b"3")]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    asked = json.loads(await _body(receive) or b"{}")
    for number in range(asked.get("events", 3)):
        await send({"type": "http.response.body", "body": b'data: {"i": %d}\n\n' % number, "more_body": True})
        await asyncio.sleep(asked.get("pause", 0))
    if asked.get("break"):
        os._exit(4)
    await send({"type": "http.response.body", "body": b""})


async def _socket(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    if scope["path"] == "/refused":
        await send({"type": "websocket.close", "code": 1008})
        return
    headers = {name.decode(): value.decode() for name, value in scope["headers"]}
    await send({"type": "websocket.accept"})
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            print("the client left with", message.get("code"))
            return
        if message.get("text") == "exit":
            os._exit(5)
        if message.get("text") == "headers":
            await send({"type": "websocket.send", "text": json.dumps(headers)})
        elif message.get("text") == "close":
            await send({"type": "websocket.close", "code": 4001, "reason": "as asked"})
            return
        else:
            await send({"type": "websocket.send", "text": message.get("text"), "bytes": message.get("bytes")})
