"""HTTP/1.1 to a runner over its unix socket: pooled connections, bodies streamed both ways.

This is on the way of every call, so it is an `asyncio.Protocol` around httptools and little else.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable

import httptools

from varvel.errors import InvalidRequest
from varvel.queue.model import Headers
from varvel.runners.errors import (
    ResponseHeadersTooLarge,
    RunnerDisconnected,
    RunnerError,
    RunnerIncomplete,
    RunnerRefused,
)

OURS = frozenset(
    {
        b"connection",
        b"content-length",
        b"expect",
        b"host",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""Headers that belong to one connection, which this one sets itself."""
HOLD = 256 * 1024
"""Bytes of a response held for a slow reader; beyond them the runner waits."""
IDLE = 60.0
"""Seconds after which an unused connection is closed."""


def request_head(method: str, target: bytes, headers: Headers, length: int | None) -> bytes:
    """The head of a request; a body of unknown length (`None`) goes in chunks.

    Raises `InvalidRequest` if anything in it would end a line.
    """
    parts = [b"%b %b HTTP/1.1\r\nhost: runner\r\n" % (method.encode("latin-1"), target)]
    for name, value in headers:
        if name not in OURS:
            parts.append(b"%b: %b\r\n" % (name, value))
    parts.append(b"transfer-encoding: chunked\r\n" if length is None else b"content-length: %d\r\n" % length)
    lines = len(parts) + 2
    parts.append(b"\r\n")
    head = b"".join(parts)
    if head.count(b"\n") != lines or head.count(b"\r") != lines or b" " in target:
        raise InvalidRequest("The path or a header of the request has a character that it cannot have")
    return head


def announced_length(headers: Headers) -> int | None:
    """What `content-length` says, if it is there and a number."""
    for name, value in headers:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return None


class Response:
    """A `RunnerResponse`."""

    __slots__ = ("_chunks", "_error", "_held", "_owner", "_waiter", "_whole", "headers", "status")

    def __init__(self, owner: _Connection) -> None:
        self.status = 0
        self.headers: Headers = []
        self._whole = False
        self._owner: _Connection | None = owner
        self._chunks: deque[bytes] = deque()
        self._held = 0
        self._error: RunnerError | None = None
        self._waiter: asyncio.Future[None] | None = None

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._iterate()

    async def _iterate(self) -> AsyncIterator[bytes]:
        while (chunk := await self._next()) is not None:
            yield chunk

    async def read(self, limit: int) -> bytes:
        """The body, if it is not larger than `limit`; else what was read so far, and the rest by iterating."""
        if self._whole and self._held <= limit:
            body = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
            self._chunks.clear()
            self._held = 0
            return body
        parts: list[bytes] = []
        size = 0
        while size <= limit and (chunk := await self._next()) is not None:
            parts.append(chunk)
            size += len(chunk)
        return b"".join(parts)

    @property
    def complete(self) -> bool:
        """Whether all of it has come from the runner."""
        return self._whole

    @property
    def exhausted(self) -> bool:
        """Whether all of it has been read."""
        return self._whole and not self._chunks

    def close(self) -> None:
        """Drop the connection, unless the whole response has come."""
        owner, self._owner = self._owner, None
        self._chunks.clear()
        if owner is not None and not self._whole:
            owner.abort()

    async def _next(self) -> bytes | None:
        while not self._chunks:
            if self._whole:
                return None
            if self._error is not None:
                raise self._error
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        chunk = self._chunks.popleft()
        self._held -= len(chunk)
        if self._owner is not None and self._held < HOLD // 2:
            self._owner.resume()
        return chunk

    def _take(self, chunk: bytes) -> None:
        self._chunks.append(chunk)
        self._held += len(chunk)
        self._wake()

    def _end(self, error: RunnerError | None) -> None:
        self._owner = None
        if error is None:
            self._whole = True
        else:
            self._error = error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class _Connection(asyncio.Protocol):
    """One connection to a runner: one request at a time."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._loop = connections.loop
        self._transport: asyncio.Transport = None  # type: ignore[assignment]
        self._parser = httptools.HttpResponseParser(self)
        self._response: Response | None = None
        self._head: asyncio.Future[Response] | None = None
        self._header_bytes = 0
        self._bodiless = False
        self._sending: asyncio.Task[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._paused = False
        self._closed = False
        self.idle_since = 0.0

    # What the pool asks

    async def request(
        self, head: bytes, body: bytes | AsyncIterator[bytes], length: int | None, bodiless: bool
    ) -> Response:
        """Send a request and wait for the head of its response."""
        waiter: asyncio.Future[Response] = self._loop.create_future()
        self._head = waiter
        self._bodiless = bodiless
        self._header_bytes = 0
        if isinstance(body, bytes):
            self._transport.write(head + body if body else head)
        else:
            self._transport.write(head)
            self._sending = self._loop.create_task(self._send(body, length))
        try:
            return await waiter
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        """Close at once."""
        if not self._closed:
            self._closed = True
            self._transport.abort()

    def resume(self) -> None:
        """The reader has room again."""
        if self._paused and not self._closed:
            self._paused = False
            self._transport.resume_reading()

    # What the transport tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as problem:
            self._fail(RunnerIncomplete(f"The app's answer is not HTTP: {problem}"))
            self.abort()

    def connection_lost(self, error: Exception | None) -> None:
        aborted, self._closed = self._closed, True
        self._connections.forget(self)
        if self._sending is not None:
            self._sending.cancel()
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        if self._head is not None:
            self._connections.answered()
            if not aborted:
                self._connections.broken()
        self._fail(RunnerDisconnected() if self._response is None else RunnerIncomplete())

    def pause_writing(self) -> None:
        self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    # What the parser tells

    def on_message_begin(self) -> None:
        self._response = Response(self)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_bytes += len(name) + len(value) + 4
        if self._header_bytes > self._connections.most_headers:
            self._fail(ResponseHeadersTooLarge())
            self.abort()
        elif self._response is not None:
            self._response.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        response = self._response
        if response is None or self._head is None:
            return
        response.status = self._parser.get_status_code()
        if response.status < 200:
            return
        if not self._head.done():
            self._head.set_result(response)
        if self._bodiless:
            self._response = None
            response._end(None)
            self.abort()

    def on_body(self, chunk: bytes) -> None:
        response = self._response
        if response is not None:
            response._take(chunk)
            if response._held > HOLD and not self._paused:
                self._paused = True
                self._transport.pause_reading()

    def on_message_complete(self) -> None:
        response = self._response
        if response is None:
            return
        self._response = None
        if response.status < 200:
            return
        self._head = None
        self._connections.answered()
        response._end(None)
        self.resume()
        if self._sending is not None and not self._sending.done():
            self.abort()  # the answer came before the body was taken: what follows on this connection is unsure
        elif self._closed or not self._parser.should_keep_alive():
            self.abort()
        else:
            self._sending = None
            self._connections.idle(self)

    # Within

    def _fail(self, error: RunnerError) -> None:
        response, self._response = self._response, None
        head, self._head = self._head, None
        if head is not None and not head.done():
            head.set_exception(error)
        elif response is not None:
            response._end(error)

    async def _send(self, body: AsyncIterator[bytes], length: int | None) -> None:
        sent = 0
        try:
            async for part in body:
                if not part:
                    continue
                sent += len(part)
                self._transport.write(b"%x\r\n%b\r\n" % (len(part), part) if length is None else part)
                if self._writable is not None:
                    await self._writable
                if self._closed:
                    return
            if length is None:
                self._transport.write(b"0\r\n\r\n")
            elif sent != length:
                raise InvalidRequest(f"The body has {sent} bytes where {length} were announced")
        except Exception as problem:
            # The caller's side broke: its own error says more than that this connection was dropped for it.
            if self._head is not None and not self._head.done():
                self._head.set_exception(problem)
            self.abort()


def _nothing() -> None: ...


class Connections:
    """Connections to one runner.

    `answered` is called when a response has wholly come, before its reader knows; `broken` when the runner
    closed a connection in the middle of a request.
    """

    def __init__(
        self,
        path: str,
        most_headers: int,
        answered: Callable[[], None] | None = None,
        broken: Callable[[], None] | None = None,
    ) -> None:
        self.path = path
        self.most_headers = most_headers
        self.loop = asyncio.get_running_loop()
        self.answered = answered or _nothing
        self.broken = broken or _nothing
        self._idle: list[_Connection] = []
        self._all: set[_Connection] = set()

    async def send(self, method: str, target: bytes, headers: Headers, body: bytes | AsyncIterator[bytes]) -> Response:
        """As `Slot.send`. Raises `RunnerRefused`, `RunnerDisconnected`, `ResponseHeadersTooLarge`, `InvalidRequest`."""
        length = len(body) if isinstance(body, bytes) else announced_length(headers)
        head = request_head(method, target, headers, length)
        connection = self._idle.pop() if self._idle else await self._connect()
        return await connection.request(head, body, length, method == "HEAD")

    async def reachable(self) -> bool:
        """Whether the runner takes a connection."""
        try:
            self.idle(await self._connect())
        except RunnerRefused:
            return False
        return True

    def idle(self, connection: _Connection) -> None:
        """The connection can be used again."""
        connection.idle_since = self.loop.time()
        self._idle.append(connection)

    def forget(self, connection: _Connection) -> None:
        """The connection is lost."""
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def tidy(self) -> None:
        """Close what has not been used for a minute."""
        before = self.loop.time() - IDLE
        while self._idle and self._idle[0].idle_since < before:
            self._idle.pop(0).abort()

    def close(self) -> None:
        """Drop every connection."""
        self._idle.clear()
        for connection in list(self._all):
            connection.abort()

    async def _connect(self) -> _Connection:
        try:
            _, connection = await self.loop.create_unix_connection(lambda: _Connection(self), self.path)
        except OSError as problem:
            raise RunnerRefused() from problem
        self._all.add(connection)
        return connection
