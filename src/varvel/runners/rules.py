"""When runners start and end, as plain functions of numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from varvel.apps.model import Scaling

BACKOFF_STEP = 30.0
BACKOFF_MOST = 600.0
"""Seconds: each start that fails in a row puts the next one off by 30 more, up to 10 minutes."""


@dataclass(frozen=True, slots=True)
class Load:
    """What an app has to do now."""

    in_flight: int
    waiting: int


def floor(load: Load, scaling: Scaling) -> int:
    """How many runners are kept when nothing is asked: the buffer or `min_concurrency`, whichever is more."""
    return min(max(scaling.min_concurrency, _buffer(load, scaling)), scaling.max_concurrency)


def wanted(load: Load, scaling: Scaling) -> int:
    """How many runners the app should have: enough for all requests, and the buffer above them."""
    needed = math.ceil((load.in_flight + load.waiting) / max(1, scaling.max_multiplexing))
    return min(max(needed + _buffer(load, scaling), scaling.min_concurrency), scaling.max_concurrency)


def _buffer(load: Load, scaling: Scaling) -> int:
    volume = load.in_flight + load.waiting
    return max(scaling.concurrency_buffer, math.ceil(scaling.concurrency_buffer_perc * volume / 100))


def backoff(failures: int) -> float:
    """Seconds until the next start, after `failures` starts in a row have failed."""
    return min(BACKOFF_STEP * failures, BACKOFF_MOST)


def idle_limit(served: bool, scaling: Scaling, fresh_idle: float) -> float:
    """Seconds that a runner above the wanted number may idle: less if no request ever came to it."""
    return scaling.keep_alive if served else fresh_idle


def cuts(since: int, until: int, tick: int) -> Iterator[int]:
    """Times (microseconds) in `(since, until]` at which an interval is cut: each `tick` from `since`, and minutes."""
    minute = 60_000_000
    at = since
    while True:
        at = min(at + tick, at - at % minute + minute)
        if at > until:
            return
        yield at
