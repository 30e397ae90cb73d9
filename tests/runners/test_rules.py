from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as some

from varvel.apps.model import Scaling
from varvel.runners.rules import Load, backoff, cuts, floor, idle_limit, wanted


def test_nothing_runs_when_nothing_is_asked() -> None:
    assert wanted(Load(0, 0), Scaling()) == 0


def test_each_waiting_request_gets_a_runner_up_to_the_most() -> None:
    assert wanted(Load(in_flight=1, waiting=2), Scaling(max_concurrency=10)) == 3
    assert wanted(Load(in_flight=1, waiting=1000), Scaling(max_concurrency=10)) == 10


def test_multiplexing_puts_several_requests_into_one_runner() -> None:
    assert wanted(Load(in_flight=3, waiting=2), Scaling(max_multiplexing=4)) == 2


def test_the_buffer_is_kept_above_what_is_used() -> None:
    scaling = Scaling(concurrency_buffer=2, max_concurrency=10)
    assert wanted(Load(0, 0), scaling) == 2
    assert wanted(Load(in_flight=3, waiting=0), scaling) == 5


def test_the_buffer_grows_with_the_load_when_it_is_a_percentage() -> None:
    scaling = Scaling(concurrency_buffer=1, concurrency_buffer_perc=50, max_concurrency=100)
    assert wanted(Load(in_flight=10, waiting=0), scaling) == 15


def test_buffer_and_least_number_do_not_add_up() -> None:
    scaling = Scaling(concurrency_buffer=2, min_concurrency=3, max_concurrency=10)
    assert floor(Load(0, 0), scaling) == 3
    assert wanted(Load(0, 0), scaling) == 3
    assert wanted(Load(in_flight=2, waiting=0), scaling) == 4


def test_failed_starts_put_off_the_next_by_half_a_minute_each_up_to_ten_minutes() -> None:
    assert [backoff(failures) for failures in (1, 2, 3, 20, 100)] == [30, 60, 90, 600, 600]


def test_a_runner_that_served_nothing_ends_sooner() -> None:
    assert idle_limit(True, Scaling(keep_alive=60), 10) == 60
    assert idle_limit(False, Scaling(keep_alive=60), 10) == 10


@given(some.integers(0, 10**15), some.integers(0, 10**9), some.integers(1_000_000, 10**8))
def test_no_interval_goes_over_a_minute_or_a_tick(since: int, length: int, tick: int) -> None:
    edges = [since, *cuts(since, since + length, tick), since + length]
    for left, right in itertools.pairwise(edges):
        assert left <= right
        assert right - left <= tick
        assert left == right or left // 60_000_000 == (right - 1) // 60_000_000
