from __future__ import annotations

import itertools
from collections import Counter

from hypothesis import given
from hypothesis import strategies as some

from varvel.runners.intervals import Intervals
from varvel.runners.model import RunnerState
from varvel.telemetry.model import RunnerRow

LABELS = {"owner": "me", "app": "me/app", "environment": "main", "machine_type": "S"}


class Clock:
    """Microseconds, told by the test."""

    def __init__(self, at: int = 0) -> None:
        self.at = at

    def __call__(self) -> int:
        return self.at


def kept(clock: Clock, tick: float = 15.0) -> tuple[Intervals, list[RunnerRow]]:
    rows: list[RunnerRow] = []
    return Intervals(LABELS, rows.append, clock, tick), rows


def test_each_stretch_of_a_life_is_a_row() -> None:
    clock = Clock(1_000_000)
    intervals, rows = kept(clock)
    for seconds, old, new in [
        (1, None, RunnerState.PENDING),
        (2, RunnerState.PENDING, RunnerState.SETUP),
        (3, RunnerState.SETUP, RunnerState.IDLE),
        (4, RunnerState.IDLE, RunnerState.TERMINATING),
        (1, RunnerState.TERMINATING, RunnerState.TERMINATED),
    ]:
        clock.at += seconds * 1_000_000
        intervals.move(old, new)
    assert [(row.pending, row.setup, row.idle, row.terminating, row.seconds) for row in rows] == [
        (1, 0, 0, 0, 2.0),
        (0, 1, 0, 0, 3.0),
        (0, 0, 1, 0, 4.0),
        (0, 0, 0, 1, 1.0),
    ]


def test_thousands_of_requests_make_few_rows_with_exact_sums() -> None:
    clock = Clock(60_000_000)
    intervals, rows = kept(clock)
    intervals.move(None, RunnerState.IDLE)
    for _ in range(10_000):
        clock.at += 300
        intervals.move(RunnerState.IDLE, RunnerState.RUNNING)
        clock.at += 700
        intervals.move(RunnerState.RUNNING, RunnerState.IDLE)
    intervals.finish()
    assert len(rows) == 2
    assert sum(row.seconds * row.running for row in rows) == 7.0
    assert sum(row.seconds * row.idle for row in rows) == 3.0


def test_a_quiet_runner_is_written_down_each_tick_and_at_the_minute() -> None:
    clock = Clock(40_000_000)
    intervals, rows = kept(clock, tick=15)
    intervals.move(None, RunnerState.IDLE)
    clock.at = 80_000_000
    intervals.advance()
    assert [(row.since, row.until) for row in rows] == [
        (40_000_000, 55_000_000),
        (55_000_000, 60_000_000),
        (60_000_000, 75_000_000),
    ]


STATES = [
    RunnerState.PENDING,
    RunnerState.SETUP,
    RunnerState.IDLE,
    RunnerState.RUNNING,
    RunnerState.DRAINING,
    RunnerState.TERMINATING,
    RunnerState.TERMINATED,
]


@given(
    some.lists(some.tuples(some.integers(0, 50_000_000), some.integers(0, 2), some.sampled_from(STATES)), max_size=60)
)
def test_seconds_by_state_are_what_passed_in_it(moves: list[tuple[int, int, RunnerState]]) -> None:
    clock = Clock(7)
    intervals, rows = kept(clock)
    now: dict[int, RunnerState | None] = {}
    spent: Counter[str] = Counter()
    for wait, runner, state in moves:
        clock.at += wait
        for held in now.values():
            if held not in (None, RunnerState.TERMINATED):
                spent[str(held)] += wait
        intervals.move(now.get(runner), state)
        now[runner] = state
    intervals.finish()
    for state in STATES[:-1]:
        microseconds = sum((row.until - row.since) * getattr(row, state.lower()) for row in rows)
        assert microseconds == spent[str(state)]
    assert all(row.since // 60_000_000 == (row.until - 1) // 60_000_000 for row in rows)
    assert all(left.until <= right.since for left, right in itertools.pairwise(rows))
