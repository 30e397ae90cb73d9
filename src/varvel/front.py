"""The front door: one ASGI callable that sends each request to its room by the first part of its path.

It also answers for the server itself (`/healthz`, `/readyz`, `/metrics`, `/`), lets browsers of other origins
in (every private thing needs a key, and no cookie is ever read), and bounds request headers.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol

from varvel import __version__
from varvel.errors import NotFound, VarvelError, data_plane_error, platform_error
from varvel.ids import uuid7

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

ALLOWED_HEADERS = b"authorization, content-type, accept, idempotency-key, range, if-none-match, last-event-id, x-fal-*"
NAMED_HEADERS = (
    b"x-fal-target-url",
    b"x-fal-queue-priority",
    b"x-fal-request-timeout",
    b"x-fal-request-start-timeout",
    b"x-fal-runner-hint",
    b"x-fal-store-io",
    b"x-fal-no-retry",
    b"x-fal-retry-config",
    b"x-fal-object-lifecycle",
    b"x-fal-object-lifecycle-preference",
    b"x-fal-file-name",
    b"x-fal-client-proxy",
)
EXPOSED_HEADERS = (
    b"x-fal-request-id, x-fal-billable-units, x-fal-served-from, x-fal-error-type, "
    b"x-fal-request-timeout-type, x-fal-needs-retry, x-fal-runner-hints, x-request-id, retry-after, "
    b"ratelimit-limit, ratelimit-remaining, ratelimit-reset, etag, content-range"
)
PLATFORM_PATHS = frozenset({"v1", "control", "openapi.json"})


class HeadersTooLarge(VarvelError):
    """The request's headers are larger than this server takes."""

    status = 431
    platform_type = "validation_error"
    data_type = "bad_request"


class Health(Protocol):
    """What the server says of itself."""

    def ready(self) -> dict[str, Any]:
        """State of each part; `ready` is whether requests are taken."""
        ...

    def metrics(self) -> bytes:
        """Prometheus text of the server itself."""
        ...


class Front:
    """Dispatches on the first path segment; `rooms` maps it to an ASGI app."""

    def __init__(self, rooms: dict[str, App], health: Health, max_headers: int) -> None:
        self._rooms = rooms
        self._health = health
        self._max_headers = max_headers
        self._own = {"": _home, "healthz": self._healthz, "readyz": self._readyz, "metrics": self._metrics}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return
        path: str = scope["path"]
        end = path.find("/", 1)
        segment = path[1:end] if end > 0 else path[1:]
        total, origin = 0, b""
        for name, value in scope["headers"]:
            total += len(name) + len(value)
            if name == b"origin":
                origin = value
        if total > self._max_headers:
            limit = f"The headers are {total} bytes, more than the {self._max_headers} that this server takes."
            await _refuse(scope, send, segment, HeadersTooLarge(limit))
            return
        if origin and scope["type"] == "http":
            if scope["method"] == "OPTIONS":
                await _preflight(scope, send, segment)
                return
            send = _with_cors(send)
        room = self._rooms.get(segment)
        if room is not None:
            await room(scope, receive, send)
        elif (own := self._own.get(segment)) is not None and scope["type"] == "http":
            await own(scope, send)
        else:
            await _refuse(scope, send, segment, NotFound(f"Nothing is at {path}."))

    async def _healthz(self, _scope: Scope, send: Send) -> None:
        await _answer(send, 200, b'{"status":"ok"}', b"application/json")

    async def _readyz(self, _scope: Scope, send: Send) -> None:
        state = self._health.ready()
        await _answer(send, 200 if state["ready"] else 503, json.dumps(state).encode(), b"application/json")

    async def _metrics(self, _scope: Scope, send: Send) -> None:
        await _answer(send, 200, self._health.metrics(), b"text/plain; version=0.0.4; charset=utf-8")


async def _home(_scope: Scope, send: Send) -> None:
    page = (
        "<!doctype html><meta charset=utf-8><title>Varvel</title>"
        "<style>body{font:16px/1.6 system-ui;margin:3rem auto;max-width:40rem;padding:0 1rem}</style>"
        f"<h1>Varvel {__version__}</h1><p>This server runs your apps and answers for them.</p><ul>"
        "<li><a href=/openapi.json>/openapi.json</a>: the Platform API</li>"
        "<li><a href=/readyz>/readyz</a>: state of each part</li>"
        "<li><a href=/metrics>/metrics</a>: the server's own metrics</li></ul>"
        "<p>On the command line, <code>varvel --help</code> shows the rest.</p>"
    )
    await _answer(send, 200, page.encode(), b"text/html; charset=utf-8")


async def _answer(
    send: Send, status: int, body: bytes, kind: bytes, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    fixed = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": fixed + (headers or [])})
    await send({"type": "http.response.body", "body": body})


async def _refuse(scope: Scope, send: Send, segment: str, error: VarvelError) -> None:
    """Answer an error in the shape of the part of the API that the path belongs to."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": error.message[:120]})
        return
    request_id = uuid7()
    if segment in PLATFORM_PATHS:
        body: dict[str, Any] = platform_error(error, request_id)
        headers = [(b"x-request-id", request_id.encode())]
    else:
        body = data_plane_error(error.message, error.data_type)
        headers = [(b"x-fal-request-id", request_id.encode()), (b"x-fal-error-type", error.data_type.encode())]
    await _answer(send, error.status, json.dumps(body).encode(), b"application/json", headers)


async def _preflight(scope: Scope, send: Send, segment: str) -> None:
    asked = next((value for name, value in scope["headers"] if name == b"access-control-request-headers"), b"")
    known = {name.strip().lower() for name in asked.split(b",")}
    custom = [name for name in known if name.startswith((b"x-fal-", b"x-app-fal-"))]
    headers = [
        (b"access-control-allow-origin", b"*"),
        (b"access-control-allow-methods", b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"),
        (b"access-control-allow-headers", b", ".join([ALLOWED_HEADERS, *NAMED_HEADERS, *sorted(custom)])),
        (b"access-control-max-age", b"600"),
    ]
    if segment in PLATFORM_PATHS:
        headers.append((b"x-request-id", uuid7().encode()))
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def _with_cors(send: Send) -> Send:
    async def allowed(message: Message) -> None:
        if message["type"] == "http.response.start":
            own = [(b"access-control-allow-origin", b"*"), (b"access-control-expose-headers", EXPOSED_HEADERS)]
            kept = [item for item in message.get("headers", ()) if not item[0].startswith(b"access-control-")]
            message = {**message, "headers": [*kept, *own]}
        await send(message)

    return allowed
