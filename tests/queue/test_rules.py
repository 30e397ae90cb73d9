"""Retries, their budgets and delays, and how long results live."""

from __future__ import annotations

from typing import Any

import pytest
from tests.queue.parts import job, outcome

from varvel.apps.model import AppSpec
from varvel.queue import rules
from varvel.queue.model import AttemptResult, Condition

SPEC = AppSpec(kind="asgi", file="a.py", attribute="app")


def spec(**given: Any) -> AppSpec:
    return AppSpec(kind="asgi", file="a.py", attribute="app", **given)


def again(
    status: int = 503,
    condition: Condition | None = "server_error",
    *,
    needs_retry: bool | None = None,
    app: AppSpec = SPEC,
    spent: dict[str, int] | None = None,
    attempts: int = 1,
    **of_job: Any,
) -> bool:
    result = AttemptResult(outcome=outcome(status), condition=condition, needs_retry=needs_retry)
    decided = rules.decide(result, job(attempts=attempts, **of_job), app, spent or {}, backoff=1, longest=10)
    return decided is not None


def test_a_final_answer_is_not_tried_again() -> None:
    assert not again(200, None)
    assert not again(500, None)


@pytest.mark.parametrize("condition", ["server_error", "timeout", "connection_error"])
def test_each_retryable_cause_is_tried_again(condition: Condition) -> None:
    assert again(condition=condition)


def test_ten_attempts_are_the_most_whatever_the_budget() -> None:
    assert again(attempts=9)
    assert not again(attempts=10)
    assert not again(attempts=10, retry_config={"server_error": 50})
    assert not again(attempts=10, needs_retry=True)


def test_conditions_have_budgets_of_their_own() -> None:
    app = spec(retry_config={"server_error": 1, "timeout": 0})
    assert again(app=app)
    assert not again(app=app, spent={"server_error": 1})
    assert again(app=app, spent={"timeout": 5})
    assert not again(condition="timeout", app=app)
    assert again(condition="connection_error", app=app)


def test_the_callers_header_comes_before_the_apps_configuration() -> None:
    app = spec(retry_config={"server_error": 0}, skip_retry_conditions=("timeout",))
    assert not again(app=app)
    assert again(app=app, retry_config={"server_error": 1})
    assert not again(condition="timeout", app=app)
    assert again(condition="timeout", app=app, retry_config={"timeout": 1})


def test_no_retry_wins_over_all() -> None:
    assert not again(no_retry=True, needs_retry=True, retry_config={"server_error": 5})


def test_the_apps_own_wish_counts_on_5xx_and_429_only() -> None:
    assert again(500, None, needs_retry=True)
    assert again(429, None, needs_retry=True)
    assert not again(503, needs_retry=False)
    assert not again(200, None, needs_retry=True)
    assert not again(422, None, needs_retry=True)


def test_the_apps_own_wish_beats_skipped_conditions() -> None:
    app = spec(skip_retry_conditions=("server_error",))
    assert not again(app=app)
    assert again(app=app, needs_retry=True)


def test_delays_double_up_to_a_bound() -> None:
    assert [rules.delay_before(n, 0.5, 5) for n in range(1, 7)] == [0.5, 1, 2, 4, 5, 5]
    assert rules.delay_before(5000, 0.5, 5) == 5


def test_large_results_go_earlier_unless_payloads_are_kept() -> None:
    times = rules.Lifetimes(ttl=3600, large=100, large_ttl=360, kept=86_400, kept_most=1000)
    assert [rules.lifetime(size, False, times) for size in (99, 100, 2000)] == [3600, 360, 360]
    assert [rules.lifetime(size, True, times) for size in (99, 100, 1000, 1001)] == [86_400, 86_400, 86_400, 3600]
    none = rules.Lifetimes(ttl=3600, large=100, large_ttl=360, kept=0, kept_most=1000)
    assert [rules.lifetime(size, True, none) for size in (99, 100, 1001)] == [3600, 3600, 3600]


def test_a_start_timeout_names_the_user_as_its_cause() -> None:
    end = rules.start_timed_out(5.0)
    assert end.status == 504
    assert end.error_type == "request_timeout"
    assert (b"x-fal-request-timeout-type", b"user") in end.headers


def test_a_cancelled_request_ends_as_499() -> None:
    end = rules.cancelled(5.0)
    assert (end.status, end.error_type, end.cancelled) == (499, "client_cancelled", True)
