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
    return Intervals(LABELS, lambda done, so_far: rows.extend(done), clock, tick), rows


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


@given(
    steps=some.lists(
        some.tuples(some.integers(0, 40_000_000), some.sampled_from(["move", "beat", "advance"]), some.integers(0, 9)),
        max_size=40,
    )
)
def test_what_is_saved_is_the_truth_as_of_the_last_time_that_anything_was_saved(
    steps: list[tuple[int, str, int]],
) -> None:
    """Whenever the server is killed: done rows and those saved so far are all until then, and no moment twice."""
    clock = Clock(7_000_000)
    done: list[RunnerRow] = []
    so_far: list[RunnerRow] = []
    saved_at = clock.at

    def save(rows: list[RunnerRow], rest: list[RunnerRow]) -> None:
        nonlocal so_far, saved_at
        done.extend(rows)
        so_far, saved_at = rest, max((row.until for row in (*rows, *rest)), default=saved_at)

    intervals = Intervals(LABELS, save, clock, 15.0)
    lives: list[RunnerState] = []
    spans: list[tuple[int, int, int]] = []
    before = clock.at
    for wait, action, which in steps:
        clock.at += wait
        spans.append((before, clock.at, len(lives)))
        before = clock.at
        if action == "beat":
            intervals.beat()
        elif action == "advance":
            intervals.advance()
        elif which % 3 == 0 or not lives:
            lives.append(RunnerState.IDLE)
            intervals.move(None, RunnerState.IDLE)
        else:
            old = lives.pop(which % len(lives))
            new = RunnerState.RUNNING if which % 3 == 1 else RunnerState.TERMINATED
            intervals.move(old, new)
            if new is RunnerState.RUNNING:
                lives.append(new)
        rows = sorted((*done, *so_far), key=lambda row: row.since)
        assert all(early.until <= late.since for early, late in itertools.pairwise(rows))
        saved = sum((row.until - row.since) * (row.idle + row.running) for row in rows)
        assert saved == sum((min(end, saved_at) - start) * count for start, end, count in spans if start < saved_at)
        if action == "beat":
            assert saved == sum((end - start) * count for start, end, count in spans)
