"""Log lines live: to those who follow, and in memory for requests that run or have just ended."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass

from varvel.telemetry.model import LogFilter, LogRow


@dataclass(frozen=True, slots=True)
class Dropped:
    """So many lines were lost at this place, because the reader was too slow."""

    count: int


class Subscription:
    """An async iterator of what a subscriber asked for, from the moment of `subscribe` on."""

    def __init__(self, hub: TailHub, accept: LogFilter, size: int, apps: frozenset[str] | None) -> None:
        self._hub = hub
        self._accept = accept
        self._size = size
        self.apps = apps
        self._waiting: deque[LogRow | Dropped] = deque()
        self._dropped = 0
        self._wake = asyncio.Event()
        self._closed = False

    def offer(self, row: LogRow) -> None:
        """Queue a line if it is wanted and there is room. Never blocks."""
        if not self._accept(row):
            return
        if len(self._waiting) >= self._size:
            self._dropped += 1
            return
        self._settle()
        self._waiting.append(row)
        self._wake.set()

    def _settle(self) -> None:
        if self._dropped:
            self._waiting.append(Dropped(self._dropped))
            self._dropped = 0

    def __aiter__(self) -> AsyncIterator[LogRow | Dropped]:
        return self

    async def __anext__(self) -> LogRow | Dropped:
        while not self._waiting:
            if self._closed:
                raise StopAsyncIteration
            self._settle()
            if not self._waiting:
                self._wake.clear()
                await self._wake.wait()
        return self._waiting.popleft()

    def ready(self) -> list[LogRow | Dropped]:
        """All that waits now, without waiting: for writing many lines in one go."""
        self._settle()
        found = list(self._waiting)
        self._waiting.clear()
        return found

    def close(self) -> None:
        """Get no more; a reader that waits ends."""
        self._closed = True
        self._hub.forget(self)
        self._wake.set()


class TailHub:
    """Hands each line to the subscriptions that may want it. Use from the event loop."""

    def __init__(self) -> None:
        self._all: set[Subscription] = set()
        self._of_app: dict[str, set[Subscription]] = {}
        self._closed = False

    def __len__(self) -> int:
        return len(self._all | {each for group in self._of_app.values() for each in group})

    def subscribe(self, accept: LogFilter, size: int = 1000, *, apps: Iterable[str] | None = None) -> Subscription:
        """Follow the lines that `accept` takes, at most `size` waiting.

        `apps` (`owner/name`) spares the filter the lines of all others; None looks at every line.
        """
        made = Subscription(self, accept, size, None if apps is None else frozenset(apps))
        if self._closed:
            made.close()
            return made
        for group in self._groups(made):
            group.add(made)
        return made

    def close(self) -> None:
        """End all subscriptions, and those to come at once: the server stops."""
        self._closed = True
        for each in self._all.union(*self._of_app.values()):
            each.close()

    def publish(self, row: LogRow) -> None:
        """Offer a line to everyone who may want it."""
        for each in self._all:
            each.offer(row)
        for each in self._of_app.get(row.app, ()):
            each.offer(row)

    def forget(self, subscription: Subscription) -> None:
        """Offer it nothing more."""
        for group in self._groups(subscription):
            group.discard(subscription)
        for app in subscription.apps or ():
            if not self._of_app.get(app):
                self._of_app.pop(app, None)

    def _groups(self, subscription: Subscription) -> list[set[Subscription]]:
        if subscription.apps is None:
            return [self._all]
        return [self._of_app.setdefault(app, set()) for app in subscription.apps]


class RequestLines:
    """The lines of requests that run or have just ended, up to `lines` in all and `each` a request.

    What is too much goes oldest first. Request ids are UUIDv7, so that the time in an id tells whether lines of
    that request can have been forgotten, or written before this process began.
    """

    def __init__(self, *, lines: int, each: int, began_ms: int) -> None:
        self._bound = lines
        self._each = each
        self._count = 0
        self._horizon = began_ms
        """Requests with an id from after this millisecond are here whole, or have no lines."""
        self._lines: OrderedDict[str, list[LogRow]] = OrderedDict()
        self._cut: set[str] = set()

    def add(self, row: LogRow) -> None:
        """Remember a line of a request."""
        found = self._lines.get(row.request_id)
        if found is None:
            found = self._lines[row.request_id] = []
        else:
            self._lines.move_to_end(row.request_id)
        if len(found) >= self._each:
            self._cut.add(row.request_id)
            return
        found.append(row)
        self._count += 1
        while self._count > self._bound and len(self._lines) > 1:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        request_id, rows = self._lines.popitem(last=False)
        self._count -= len(rows)
        self._cut.discard(request_id)
        self._horizon = max(self._horizon, made_at(request_id) or 0)

    def get(self, request_id: str) -> list[LogRow] | None:
        """All lines of a request in order; None when memory may not have all of them."""
        if request_id in self._cut or (made_at(request_id) or 0) <= self._horizon:
            return None
        return list(self._lines.get(request_id, ()))


def made_at(request_id: str) -> int | None:
    """The millisecond in a UUIDv7; None for any other text."""
    if len(request_id) != 36 or request_id[14] != "7":
        return None
    try:
        return int(request_id[:8] + request_id[9:13], 16)
    except ValueError:
        return None
