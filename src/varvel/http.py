"""uvicorn's HTTP/1.1 protocol with less work a request: a whole answer is one write, keep-alive is one timer.

Everything that is not on the way of every call (pipelining, upgrades, streams, errors) is uvicorn's own.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import unquote

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from varvel.errors import InvalidRequest, data_plane_error, platform_error
from varvel.ids import uuid7

Headers = list[tuple[bytes, bytes]]
ONE_WRITE = 64 * 1024
"""Bytes of a body that is copied behind its head, to save a system call."""


class Cycle(RequestResponseCycle):
    """One request and its response."""

    body: bytes | bytearray  # type: ignore[assignment]
    """What came and was not received yet: bytes while it is one piece, which is passed on without a copy."""

    async def receive(self) -> Any:
        """The next piece of the body, or that the client is gone."""
        message = await super().receive()
        self.body = b""
        return message

    async def answer(self, status: int, headers: Headers, body: bytes) -> None:
        """Send the whole response. Without a `content-length` among the headers it goes the long way."""
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        head = None if self.response_started else self._head(status, headers)
        if head is None:
            await self.send({"type": "http.response.start", "status": status, "headers": headers})
            await self.send({"type": "http.response.body", "body": body, "more_body": False})
            return
        self.response_started = self.response_complete = True
        self.waiting_for_100_continue = False
        if self.scope["method"] == "HEAD" or not body:
            self.transport.write(head)
        elif len(body) <= ONE_WRITE:
            self.transport.write(head + body)
        else:
            self.transport.write(head)
            self.transport.write(body)
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()

    def _head(self, status: int, headers: Headers) -> bytes | None:
        parts = [STATUS_LINE[status]]
        parts += [b"%b: %b\r\n" % item for item in self.default_headers]
        measured = False
        for item in headers:
            name = item[0]
            if name == b"content-length":
                measured = True
            elif name == b"connection" or name == b"transfer-encoding":
                return None
            parts.append(b"%b: %b\r\n" % item)
        if not measured:
            return None
        if not self.keep_alive:
            parts.append(b"connection: close\r\n")
        parts.append(b"\r\n")
        head = b"".join(parts)
        if head.count(b"\n") != len(parts) or head.count(b"\r") != len(parts) or b"\0" in head:
            raise RuntimeError("A header of the response has a character that it cannot have")
        return head


class Protocol(HttpToolsProtocol):
    """One connection of a client."""

    _idle_since = 0.0
    """Loop time since which nothing was asked; 0 while something is."""

    def on_headers_complete(self) -> None:
        parser = self.parser
        version = parser.get_http_version()
        scope = self.scope
        scope["method"] = parser.get_method().decode("ascii")
        if version != "1.1":
            scope["http_version"] = version
        if parser.should_upgrade() and self._should_upgrade():
            return
        url = httptools.parse_url(self.url)
        raw_path = url.path
        path = raw_path.decode("ascii")
        scope["path"] = unquote(path) if "%" in path else path
        scope["raw_path"] = raw_path
        scope["query_string"] = url.query or b""
        before = self.cycle
        self.cycle = cycle = Cycle(
            scope,
            self.transport,
            self.flow,
            self.logger,
            self.access_logger,
            self.access_log,
            self.server_state.default_headers,
            asyncio.Event(),
            self.expect_100_continue,
            version != "1.0" and parser.should_keep_alive(),
            self.on_response_complete,
        )
        cycle.body = b""
        if before is None or before.response_complete:
            self._start_asgi_task(cycle, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, self.app))

    def on_body(self, body: bytes) -> None:
        cycle = self.cycle
        if isinstance(cycle, Cycle) and cycle.body and isinstance(cycle.body, bytes):
            # From the second piece on they are put together in place: there may be very many, of a byte each.
            cycle.body = bytearray(cycle.body)
        super().on_body(body)

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
            return
        self._idle_since = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._look_in(self.timeout_keep_alive)

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, as an error of the Platform API where the path says so."""
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete and (cycle.response_started or not cycle.more_body):
            self.transport.close()  # what would be read as the answer to an earlier request
            return
        error, request_id = InvalidRequest(f"This is not a request of HTTP/1.1: {msg}"), uuid7()
        if (self.url or b"").startswith(b"/v1/"):
            body, name = platform_error(error, request_id), b"x-request-id"
        else:
            body, name = dict(data_plane_error(error.message, error.data_type)), b"x-fal-request-id"
        content = json.dumps(body).encode()
        parts = [STATUS_LINE[400], b"content-type: application/json\r\nconnection: close\r\n"]
        parts.append(b"%b: %b\r\ncontent-length: %d\r\n\r\n" % (name, request_id.encode(), len(content)))
        self.transport.write(b"".join(parts) + content)
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None
        super().connection_lost(exc)

    def timeout_keep_alive_handler(self) -> None:
        """Close the connection if it has been idle for long enough, else look again when it may be."""
        self.timeout_keep_alive_task = None
        if self.transport.is_closing():
            return
        if not self._idle_since:
            self._look_in(self.timeout_keep_alive)
            return
        left = self._idle_since + self.timeout_keep_alive - self.loop.time()
        if left <= 0:
            self.transport.close()
        else:
            self._look_in(left)

    def _look_in(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def _unset_keepalive_if_required(self) -> None:
        self._idle_since = 0.0


async def answer_whole(send: object, status: int, headers: Headers, body: bytes) -> bool:
    """Answer in one write, if `send` is of a connection of ours and nobody stands between; whether it was."""
    cycle = getattr(send, "__self__", None)
    if not isinstance(cycle, Cycle):
        return False
    await cycle.answer(status, headers, body)
    return True
