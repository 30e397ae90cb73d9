"""One timer for all start deadlines, and the time by which results expire: neither moves when the clock is set."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable

_LEAST_STEP = 1.0
"""Seconds: a smaller difference is no setting of the clock."""
_PAGE = 2000
"""Most deadlines in one turn of the loop."""


class Deadlines:
    """Calls back with the ids whose time has come. Ids that no longer wait are the listener's to ignore."""

    def __init__(self, expired: Callable[[list[str]], None], clock: Callable[[], float]) -> None:
        self._expired = expired
        self._clock = clock
        self._heap: list[tuple[float, str]] = []
        self._timer: asyncio.TimerHandle | None = None

    def add(self, at: float, request_id: str) -> None:
        """Watch a deadline (seconds of the monotonic clock)."""
        heapq.heappush(self._heap, (at, request_id))
        if self._heap[0][1] == request_id:
            self._arm()

    def close(self) -> None:
        self._heap.clear()
        self._disarm()

    def _arm(self) -> None:
        self._disarm()
        if self._heap:
            wait = max(0.0, self._heap[0][0] - self._clock())
            self._timer = asyncio.get_running_loop().call_later(wait, self._look)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        now = self._clock()
        due: list[str] = []
        while self._heap and self._heap[0][0] <= now and len(due) < _PAGE:
            due.append(heapq.heappop(self._heap)[1])
        self._arm()
        if due:
            self._expired(due)


class SteadyWall:
    """Wall time without the steps that the clock made when it was set; `steps` are those of earlier lives."""

    def __init__(self, clock: Callable[[], float], monotonic: Callable[[], float], steps: float = 0.0) -> None:
        self._clock = clock
        self._monotonic = monotonic
        self._steps = steps
        self._offset = clock() - steps - monotonic()

    def now(self) -> float:
        return self._monotonic() + self._offset

    def steps(self) -> float:
        """Seconds by which the clock was set, all in all. Drifts of less than a second are none."""
        steps = self._clock() - self.now()
        if abs(steps - self._steps) >= _LEAST_STEP:
            self._steps = steps
        return self._steps
