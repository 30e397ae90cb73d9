"""Runner seconds by state, exact to the microsecond, as rows for the telemetry store.

A row is saved when its interval is over. What an interval that goes on has come to is saved at each heartbeat, so
that a killed server loses what is younger than that, and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from varvel import ids
from varvel.runners.model import RunnerState
from varvel.runners.rules import cuts
from varvel.telemetry.model import RunnerRow

COLUMN: dict[RunnerState | None, int] = {
    RunnerState.PENDING: 0,
    RunnerState.CRASH_BACKOFF: 0,
    RunnerState.SETUP: 1,
    RunnerState.IDLE: 2,
    RunnerState.RUNNING: 3,
    RunnerState.DRAINING: 4,
    RunnerState.TERMINATING: 5,
}
SERVING = frozenset({RunnerState.IDLE, RunnerState.RUNNING})


class RunnerSeconds(Protocol):
    """Keeps runner intervals. Called on the event loop; never blocks."""

    def save(self, name: str, done: list[RunnerRow], so_far: list[RunnerRow]) -> None:
        """Keep rows that are done, and `so_far` in place of what was kept so far under this name; both or neither."""
        ...

    def retry(self) -> None:
        """Try again to keep what could not be kept before."""
        ...


class SteadyClock:
    """Wall time in microseconds that does not jump while it is used: steps of the clock wait for `rebase`."""

    def __init__(self) -> None:
        self._offset = time.time_ns() - time.monotonic_ns()

    def now(self) -> int:
        return (time.monotonic_ns() + self._offset) // 1000

    def rebase(self) -> bool:
        """Follow the wall clock if it has gone a second away from this one; say whether it had."""
        offset = time.time_ns() - time.monotonic_ns()
        if abs(offset - self._offset) < 1_000_000_000:
            return False
        self._offset = offset
        return True


class Intervals:
    """Counts of one app's runners of one size of machine, and how long each combination of counts lasted.

    Rows are cut at each change of the number of runners or of their life, at each tick and at minutes. Between two
    cuts, runners go from idle to running and back thousands of times a second: those moments are summed by
    combination, so that `count x seconds` stays exact while their order in the interval does not matter.
    """

    def __init__(
        self,
        labels: dict[str, str],
        save: Callable[[list[RunnerRow], list[RunnerRow]], None],
        now: Callable[[], int],
        tick: float,
        *,
        gpus: int = 0,
    ) -> None:
        """`save(done, so_far)` keeps both or neither; `gpus` are those of each runner, `tick` in seconds."""
        self._labels = labels
        self._save = save
        self._gpus = gpus
        self._now = now
        self._tick = int(tick * 1_000_000)
        self._counts = [0, 0, 0, 0, 0, 0]
        self._spent: dict[tuple[int, ...], int] = {}
        self._since = self._last = now()
        self._kept_so_far = False

    def move(self, old: RunnerState | None, new: RunnerState | None) -> None:
        """A runner went from `old` (None: it is new) to `new` (None or TERMINATED: it is no more)."""
        self.advance()
        if not (old in SERVING and new in SERVING):
            self._write()
        if (column := COLUMN.get(old)) is not None:
            self._counts[column] -= 1
        if (column := COLUMN.get(new)) is not None:
            self._counts[column] += 1

    def advance(self) -> None:
        """Write what is due until now."""
        now = max(self._now(), self._last)
        if now - self._since >= self._tick or now // 60_000_000 != self._since // 60_000_000:
            for cut in list(cuts(self._since, now, self._tick)):
                self._spend(cut)
                self._write()
        self._spend(now)

    def beat(self) -> None:
        """Save what the interval that goes on has come to."""
        self.advance()
        if so_far := self._rows():
            self._save([], so_far)
            self._kept_so_far = True

    def finish(self) -> None:
        """Write all."""
        self.advance()
        self._write()

    def restart(self) -> None:
        """The clock was set: what has been until now is written by the old one."""
        self._write()
        self._since = self._last = self._now()

    def _spend(self, until: int) -> None:
        if until > self._last:
            combination = tuple(self._counts)
            self._spent[combination] = self._spent.get(combination, 0) + until - self._last
            self._last = until

    def _write(self) -> None:
        done = self._rows()
        self._spent = {}
        self._since = self._last
        if done or self._kept_so_far:
            self._save(done, [])
            self._kept_so_far = False

    def _rows(self) -> list[RunnerRow]:
        rows, since = [], self._since
        for combination, duration in self._spent.items():
            if any(combination):
                rows.append(self._row(since, duration, combination))
            since += duration
        return rows

    def _row(self, since: int, duration: int, counts: tuple[int, ...]) -> RunnerRow:
        pending, setup, idle, running, draining, terminating = counts
        return RunnerRow(
            row_id=ids.uuid7(),
            **self._labels,
            gpus=self._gpus,
            since=since,
            until=since + duration,
            seconds=duration / 1_000_000,
            pending=pending,
            setup=setup,
            idle=idle,
            running=running,
            draining=draining,
            terminating=terminating,
        )
