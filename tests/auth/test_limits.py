"""The allowance of calls a minute."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from varvel.auth.limits import RateLimits


def allowed(limits: RateLimits, now: float) -> bool:
    verdict = limits.take("k", now)
    assert verdict is not None
    return verdict.allowed


@pytest.mark.parametrize("limit", [1, 3, 7, 60, 600, 601])
def test_a_fresh_key_may_make_its_whole_allowance_at_once_and_no_more(limit: int) -> None:
    limits = RateLimits(limit)
    assert [allowed(limits, 1000.0) for _ in range(limit + 1)] == [True] * limit + [False]


def test_headers_count_down_and_a_refusal_says_when_to_come_again() -> None:
    limits = RateLimits(2)
    first, second, third = (limits.take("k", 0.0) for _ in range(3))
    assert first is not None
    assert second is not None
    assert third is not None
    assert first.headers() == {"ratelimit-limit": "2", "ratelimit-remaining": "1", "ratelimit-reset": "30"}
    assert second.headers()["ratelimit-remaining"] == "0"
    assert "retry-after" not in second.headers()
    assert third.headers()["retry-after"] == "30"


def test_who_waits_as_long_as_was_said_gets_in() -> None:
    limits = RateLimits(7)
    while (verdict := limits.take("k", 50.0)) and verdict.allowed:
        pass
    assert verdict is not None
    assert not allowed(limits, 50.0 + verdict.retry_after - 0.1)
    assert allowed(limits, 50.0 + verdict.retry_after)


def test_a_clock_that_goes_back_locks_nobody_out() -> None:
    limits = RateLimits(10)
    for _ in range(10):
        allowed(limits, 1e9)
    assert not allowed(limits, 1e9 - 86_400)
    assert allowed(limits, 1e9 - 86_400 + 6.1)


def test_keys_do_not_share_an_allowance_and_zero_is_no_limit() -> None:
    limits = RateLimits(1)
    assert allowed(limits, 0.0)
    other = limits.take("other", 0.0)
    assert other is not None
    assert other.allowed
    assert RateLimits(0).take("k", 0.0) is None


@given(
    limit=st.integers(1, 100),
    steps=st.lists(st.floats(0, 5, allow_nan=False), min_size=1, max_size=300),
)
def test_never_more_than_twice_the_allowance_in_any_minute(limit: int, steps: list[float]) -> None:
    limits, now, passed = RateLimits(limit), 1000.0, []
    for step in steps:
        now += step
        if allowed(limits, now):
            passed.append(now)
    for begin in passed:
        assert sum(begin <= at < begin + 60 for at in passed) <= 2 * limit
