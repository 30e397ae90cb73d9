"""What happens to every call before and after its handler: id, key, rate, size, errors, HEAD.

Plain ASGI around the FastAPI app, so that an unknown caller's body is never read.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import structlog
from fastapi import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from varvel import ids
from varvel.errors import (
    AuthenticationRequired,
    InvalidRequest,
    RateLimited,
    TooLarge,
    VarvelError,
    known,
    platform_error,
)
from varvel.platform.leaving import Patience

if TYPE_CHECKING:
    from varvel.auth.limits import RateLimits
    from varvel.auth.model import Authenticator, Caller
    from varvel.settings import Settings

OPEN = frozenset({"/v1/meta", "/openapi.json"})
FILES = "/v1/serverless/files/"
UPLOADS = (f"{FILES}file/", "/control/deploy")
"""Paths whose bodies go to disk as they come and have a limit of their own."""
_log = structlog.get_logger("varvel.platform")


class Edge:
    """ASGI middleware of the Platform API. Sets `state.request_id`, `state.caller` and `state.head`."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        settings: Settings,
        authenticator: Authenticator,
        limits: RateLimits,
        clock: Callable[[], float],
    ) -> None:
        self._app = app
        self._settings = settings
        self._authenticator = authenticator
        self._limits = limits
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state["request_id"] = ids.uuid7()
        state["head"] = scope["method"] == "HEAD"
        reply = _Reply(send, state["request_id"], state["head"])
        client = Patience(scope, receive, lambda: reply.started)
        try:
            state["caller"] = self._admit(scope, reply)
            if "\n" in scope["path"] and scope["path"].startswith(FILES):
                # The router's patterns end at a line, so that it would say that there is no such operation.
                raise InvalidRequest("A path may not contain control characters")
            inner = {**scope, "method": "GET"} if state["head"] else scope
            await self._app(inner, self._limited(scope, client.receive), reply.send)
        except ClientDisconnect:
            # Nobody is there to be answered.
            return
        except asyncio.CancelledError:
            if not client.took():
                raise
        except Exception as problem:
            await reply.fail(problem, scope["path"])
        finally:
            client.stop()

    def _admit(self, scope: Scope, reply: _Reply) -> Caller | None:
        header = _header(scope, b"authorization")
        try:
            caller = self._authenticator.authenticate(header)
        except AuthenticationRequired:
            self._count(f"address:{_address(scope)}", reply)
            if scope["path"] in OPEN:
                # What needs no key does not mind a bad one.
                return None
            raise
        self._count(caller.key_id if caller else f"address:{_address(scope)}", reply)
        if caller is None and scope["path"] not in OPEN:
            raise AuthenticationRequired()
        return caller

    def _count(self, name: str, reply: _Reply) -> None:
        if not (verdict := self._limits.take(name, self._clock())):
            return
        reply.headers += [(key.encode(), value.encode()) for key, value in verdict.headers().items()]
        if not verdict.allowed:
            raise RateLimited(f"Rate limit exceeded: {verdict.limit} calls a minute")

    def _limited(self, scope: Scope, receive: Receive) -> Receive:
        if scope["path"].startswith(UPLOADS):
            return receive
        limit, seen = self._settings.max_body, 0
        if int(_header(scope, b"content-length") or 0) > limit:
            raise TooLarge()

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > limit:
                # Of all that a body's reader may raise, FastAPI passes only this on.
                raise HTTPException(TooLarge.status, TooLarge().message)
            return message

        return counted


class _Reply:
    """One reply on its way out."""

    def __init__(self, send: Send, request_id: str, head: bool) -> None:
        self._send = send
        self._request_id = request_id
        self._head = head
        self.started = False
        self.headers: list[tuple[bytes, bytes]] = [(b"x-request-id", request_id.encode())]

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            message = {**message, "headers": [*message.get("headers", ()), *self.headers]}
        elif message["type"] == "http.response.body" and self._head:
            message = {**message, "body": b""}
        await self._send(message)

    async def fail(self, problem: Exception, path: str) -> None:
        """Answer with the envelope. What is not one of our errors is a fault of ours: logged, never shown."""
        error = known(problem) or VarvelError("An unexpected error occurred")
        if known(problem) is None:
            _log.error("platform call failed", path=path, request_id=self._request_id, exc_info=problem)
        if self.started:
            raise problem
        body = json.dumps(platform_error(error, self._request_id)).encode()
        headers: list[Any] = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        headers += [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]
        await self.send({"type": "http.response.start", "status": error.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})


def _header(scope: Scope, name: bytes) -> str | None:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), None)


def _address(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else "unknown"
