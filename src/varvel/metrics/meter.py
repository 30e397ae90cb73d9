"""Counts of calls as they happen. It stands on every request's way, so it does two dictionary steps and no more.

Counts go into the second that is running. When the second turns they are folded into the last minute and into
the totals since start; readers fold first, so an idle server needs no timer.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TypeVar

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
"""Upper bounds (seconds, inclusive) of the latency buckets; one more without a bound follows."""

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})
"""What a `method` label may be; anything else is `OTHER`, for the caller chooses it."""

WINDOW = 60
"""Seconds of the gauges that say "in the last minute": the running second and the 59 before it."""

_Received = dict[tuple[str, str], int]
_Completed = dict[tuple[str, str, int, int], int]
_K = TypeVar("_K")


@dataclass(slots=True)
class Traffic:
    """Calls of one app, in the last minute or since start."""

    received: dict[str, int] = field(default_factory=dict)
    """By method."""
    completed: dict[tuple[str, int], int] = field(default_factory=dict)
    """By method and HTTP status."""
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS) + 1))
    """Completed calls by latency, each bucket for itself."""
    seconds: float = 0.0
    """Sum of latencies; only since start."""

    @property
    def cumulative(self) -> list[int]:
        """Completed calls at or under each bound, the last being all of them."""
        return list(accumulate(self.buckets))


class Meter:
    """Counts of received and completed calls by app. To be used from one thread (the event loop)."""

    __slots__ = ("_clock", "_completed", "_minute", "_received", "_ring", "_second", "_seconds", "_totals")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._second = int(clock())
        self._received: _Received = {}
        self._completed: _Completed = {}
        self._seconds: dict[str, float] = {}
        self._ring: deque[tuple[int, _Received, _Completed]] = deque()
        self._minute: tuple[_Received, _Completed] = ({}, {})
        self._totals: tuple[_Received, _Completed] = ({}, {})

    def received(self, app: str, method: str) -> None:
        """A call for `app` (`owner/name`) came in."""
        if (second := int(self._clock())) != self._second:
            self._turn(second)
        key = (app, method if method in METHODS else "OTHER")
        counts = self._received
        counts[key] = counts.get(key, 0) + 1

    def completed(self, app: str, method: str, status: int, seconds: float) -> None:
        """A call came to its end: answered with `status` after `seconds` from its arrival."""
        if (second := int(self._clock())) != self._second:
            self._turn(second)
        key = (app, method if method in METHODS else "OTHER", status, bisect_left(BUCKETS, seconds))
        counts = self._completed
        counts[key] = counts.get(key, 0) + 1
        self._seconds[app] = self._seconds.get(app, 0.0) + seconds

    def last_minute(self) -> dict[str, Traffic]:
        """Traffic by app in the last minute; what was seen once stays, with zeros."""
        self._turn(int(self._clock()))
        return _by_app(*self._minute)

    def totals(self) -> dict[str, Traffic]:
        """Traffic by app since start."""
        self._turn(int(self._clock()))
        traffic = _by_app(*self._totals)
        for app, seconds in self._seconds.items():
            traffic[app].seconds = seconds
        return traffic

    def _turn(self, second: int) -> None:
        if self._received or self._completed:
            self._ring.append((self._second, self._received, self._completed))
            for kept in (self._minute, self._totals):
                _add(kept[0], self._received)
                _add(kept[1], self._completed)
            self._received, self._completed = {}, {}
        while self._ring and self._ring[0][0] <= second - WINDOW:
            _, received, completed = self._ring.popleft()
            _subtract(self._minute[0], received)
            _subtract(self._minute[1], completed)
        self._second = second


def _add(into: dict[_K, int], counts: dict[_K, int]) -> None:
    for key, count in counts.items():
        into[key] = into.get(key, 0) + count


def _subtract(into: dict[_K, int], counts: dict[_K, int]) -> None:
    for key, count in counts.items():
        into[key] -= count


def _by_app(received: _Received, completed: _Completed) -> dict[str, Traffic]:
    names = dict.fromkeys(key[0] for counts in (received, completed) for key in counts)
    traffic = {app: Traffic() for app in names}
    for (app, method), count in received.items():
        traffic[app].received[method] = count
    for (app, method, status, bucket), count in completed.items():
        own = traffic[app]
        own.completed[method, status] = own.completed.get((method, status), 0) + count
        own.buckets[bucket] += count
    return traffic
