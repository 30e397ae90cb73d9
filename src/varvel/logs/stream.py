"""One reader's stream of log lines as Server-Sent Events: what the store has first, then live, with no seam.

The reader is subscribed before the store is asked. Lines with a `ts` up to the fence (the last one given when it
subscribed) come from the store, which has them all after a barrier; lines above it come live. So none is missing
and none comes twice, and a reader that comes back with the id of its last line goes on behind it, whether its
connection broke or the server was started anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec

from varvel.errors import VarvelError
from varvel.logs.pages import oldest_first
from varvel.logs.rules import LogQuery, item
from varvel.telemetry.model import LogRow
from varvel.telemetry.service import Telemetry
from varvel.telemetry.tail import Dropped, Subscription

FOREVER = 2**62
_encode = msgspec.json.encode


def line_event(row: LogRow) -> bytes:
    """An event whose data is the line as the history shows it; its id is the line's timestamp."""
    shown = item(row)
    return b"id: %b\ndata: %b\n\n" % (shown["timestamp"].encode(), _encode(shown))


def event(name: str, data: dict[str, Any]) -> bytes:
    """An event that is not a line."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), _encode(data))


def comment(text: str) -> bytes:
    """What keeps a quiet connection open, and is not an event."""
    return b": %b\n\n" % text.encode()


class LogStream:
    """Lines that pass `query`, from after `after` (microseconds; None for live only) to before `until`."""

    def __init__(
        self,
        telemetry: Telemetry,
        query: LogQuery,
        *,
        after: int | None,
        until: int = FOREVER,
        heartbeat: float,
        buffer: int,
        clock: Callable[[], float],
    ) -> None:
        self._telemetry = telemetry
        self._query = query
        self._after = after
        self._until = until
        self._heartbeat = heartbeat
        self._clock = clock
        self._subscription: Subscription = telemetry.tail.subscribe(query.matches, buffer)
        self._fence = telemetry.tail.last_ts

    async def open(self) -> None:
        """Make sure that what the stream begins with is in the store. Raises `TelemetryUnavailable`."""
        if self._after is None:
            return
        try:
            await self._telemetry.barrier()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop listening. Safe to call twice."""
        self._subscription.close()

    async def events(self) -> AsyncIterator[bytes]:
        """The stream, to be closed by whoever reads it."""
        yield comment("varvel")
        if self._after is not None:
            try:
                async for row in oldest_first(
                    self._telemetry, self._query, self._after + 1, min(self._fence + 1, self._until)
                ):
                    yield line_event(row)
            except VarvelError as problem:
                yield event("error", {"type": problem.platform_type, "message": problem.message})
                return
        async for piece in self._live():
            yield piece

    async def _live(self) -> AsyncIterator[bytes]:
        while (found := await self._next()) is not None:
            if isinstance(found, bytes):
                yield found
            elif isinstance(found, Dropped):
                yield event("dropped", {"count": found.count})
            elif found.ts >= self._until:
                return
            elif found.ts > self._fence:
                yield line_event(found)

    async def _next(self) -> LogRow | Dropped | bytes | None:
        """A line or a loss, a comment when nothing came for long, or None at the end."""
        left = self._until / 1e6 - self._clock()
        try:
            async with asyncio.timeout(max(0.0, min(self._heartbeat, left))):
                return await anext(self._subscription, None)
        except TimeoutError:
            return None if left <= self._heartbeat else comment("heartbeat")
