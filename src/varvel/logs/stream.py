"""One reader's stream of log lines as Server-Sent Events: what the store has first, then live, with no seam.

The reader is subscribed before the store is asked. Lines with a `ts` up to the fence (the last one given when it
subscribed) come from the store, which has them all after a barrier; lines above it come live. So none is missing
and none comes twice, and a reader that comes back with the id of its last line goes on behind it, whether its
connection broke or the server was started anew.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
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


class LineEvents:
    """Lines as events: the data is the line as the history shows it, the id its timestamp.

    The last ones are remembered, for many readers may follow the same lines.
    """

    def __init__(self, remembered: int = 1000) -> None:
        self._made: OrderedDict[int, bytes] = OrderedDict()
        self._remembered = remembered

    def live(self, row: LogRow) -> bytes:
        """The event of a line that others may be about to ask for, too."""
        if (made := self._made.get(row.ts)) is None:
            made = self._made[row.ts] = self.make(row)
            if len(self._made) > self._remembered:
                self._made.popitem(last=False)
        return made

    def make(self, row: LogRow) -> bytes:
        """The event of a line."""
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
        lines: LineEvents,
        *,
        after: int | None,
        until: int = FOREVER,
        heartbeat: float,
        buffer: int,
        clock: Callable[[], float],
    ) -> None:
        self._telemetry = telemetry
        self._query = query
        self._lines = lines
        self._after = after
        self._until = until
        self._heartbeat = heartbeat
        self._clock = clock
        self._subscription: Subscription = telemetry.tail(query.matches, buffer, apps=query.apps or None)
        self._fence = telemetry.last_ts

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
            end = min(self._fence + 1, self._until)
            try:
                async for row in oldest_first(self._telemetry, self._query, self._after + 1, end):
                    yield self._lines.make(row)
            except VarvelError as problem:
                yield event("error", {"type": problem.platform_type, "message": problem.message})
                return
        async for piece in self._live():
            yield piece

    async def _live(self) -> AsyncIterator[bytes]:
        while True:
            try:
                found = await self._next()
            except StopAsyncIteration:  # the server stops; the reader comes back with Last-Event-ID
                return
            if not found and self._clock() * 1e6 >= self._until:
                return
            if piece := b"".join(self._piece(each) for each in found):
                yield piece
            elif not found:
                yield comment("heartbeat")
            if any(isinstance(each, LogRow) and each.ts >= self._until for each in found):
                return

    def _piece(self, found: LogRow | Dropped) -> bytes:
        if isinstance(found, Dropped):
            return event("dropped", {"count": found.count})
        return self._lines.live(found) if self._fence < found.ts < self._until else b""

    async def _next(self) -> list[LogRow | Dropped]:
        """All that has come; nothing when nothing came until a comment is due, or the end."""
        left = self._until / 1e6 - self._clock()
        try:
            async with asyncio.timeout(max(0.0, min(self._heartbeat, left))):
                return [await anext(self._subscription), *self._subscription.ready()]
        except TimeoutError:
            return self._subscription.ready()
