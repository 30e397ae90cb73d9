"""Rules of the queue, without I/O: who is tried again and when, how long results live, ends that we make ourselves.

Budgets and their precedence follow the hosted platform's documentation of retries: each condition has a budget of
its own; the caller's header (owner only) comes before the app's configuration, which comes before the default;
ten attempts are the most in any case.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from varvel.apps.model import AppSpec
from varvel.errors import data_plane_error
from varvel.queue.model import AttemptResult, Condition, Job, Outcome

MAX_ATTEMPTS = 10


@dataclass(frozen=True, slots=True)
class Again:
    """The job is tried again after `delay` seconds, on the budget of `condition`."""

    condition: Condition
    delay: float


def decide(
    result: AttemptResult, job: Job, spec: AppSpec | None, spent: Mapping[str, int], *, backoff: float, longest: float
) -> Again | None:
    """Whether a job whose last attempt ended in `result` is tried again; None when this is its end.

    `job.attempts` counts the attempt that ended; `spent` how many retries each condition has cost before.
    """
    condition = result.condition
    if _asked(result) is False or job.no_retry or job.attempts >= MAX_ATTEMPTS:
        return None
    if _asked(result):
        condition = condition or "server_error"
        allowed = budget(condition, job, spec, skips=False)
    elif condition is not None:
        allowed = budget(condition, job, spec)
    else:
        return None
    if spent.get(condition, 0) >= allowed:
        return None
    return Again(condition, delay_before(job.attempts, backoff, longest))


def _asked(result: AttemptResult) -> bool | None:
    """The app's own wish, which counts on 5xx and 429 only."""
    status = result.outcome.status
    return result.needs_retry if status >= 500 or status == 429 else None


def budget(condition: Condition, job: Job, spec: AppSpec | None, *, skips: bool = True) -> int:
    """Extra attempts that a condition may cost. `skips` False looks past the app's `skip_retry_conditions`."""
    if job.retry_config is not None and condition in job.retry_config:
        return job.retry_config[condition]
    if spec is None:
        return MAX_ATTEMPTS - 1
    if skips and condition in spec.skip_retry_conditions:
        return 0
    return spec.retry_config.get(condition, MAX_ATTEMPTS - 1)


def delay_before(attempts: int, backoff: float, longest: float) -> float:
    """Seconds to wait after the given number of attempts: doubling from `backoff`, at most `longest`."""
    doublings: int = min(attempts - 1, 30)
    return min(longest, backoff * 2.0**doublings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifetimes:
    """How long results can be fetched; times in seconds, sizes in bytes."""

    ttl: float
    large: int
    """Results of this size or more have only `large_ttl`, where payloads are not kept."""
    large_ttl: float
    kept: float
    """Where payloads are kept, for results of at most `kept_most` bytes."""
    kept_most: int


def lifetime(size: int, kept: bool, times: Lifetimes) -> float:
    """Seconds for which a result can be fetched, by its size and whether payloads of its request are kept."""
    if kept:
        return max(times.kept, times.ttl) if size <= times.kept_most else times.ttl
    return min(times.ttl, times.large_ttl) if size >= times.large else times.ttl


def own_end(
    status: int, error_type: str, detail: str, at: float, *, headers: tuple[tuple[bytes, bytes], ...] = ()
) -> Outcome:
    """An end that no app answered: `{"detail", "error_type"}`, and the type in `x-fal-error-type`."""
    return Outcome(
        status=status,
        headers=[(b"content-type", b"application/json"), (b"x-fal-error-type", error_type.encode()), *headers],
        body=msgspec.json.encode(data_plane_error(detail, error_type)),
        error=detail,
        error_type=error_type,
        started_at=at,
        ended_at=at,
    )


def cancelled(at: float) -> Outcome:
    """The end of a request that was cancelled, or flushed, while it waited."""
    outcome = own_end(499, "client_cancelled", "The request was cancelled.", at)
    outcome.cancelled = True
    return outcome


def start_timed_out(at: float, trouble: str | None = None) -> Outcome:
    """The end of a request that did not start within the time that its caller set; `trouble` is why, if it is known."""
    return own_end(
        504,
        "request_timeout",
        "The request did not start within its start timeout." + (f" {trouble}." if trouble else ""),
        at,
        headers=((b"x-fal-request-timeout-type", b"user"),),
    )


def app_gone(at: float) -> Outcome:
    """The end of a request whose app was deleted while it waited."""
    return own_end(404, "not_found", "The app was deleted.", at)


def server_died(started_at: float, at: float) -> AttemptResult:
    """The attempt that a crash of the server cut off."""
    outcome = own_end(503, "runner_disconnected", "The server stopped while the request ran.", at)
    outcome.started_at = min(started_at, at)
    return AttemptResult(outcome=outcome, condition="connection_error")


def broke(problem: BaseException, at: float) -> Outcome:
    """The end of a request on which the server itself failed."""
    return own_end(500, "internal_error", f"The request failed inside the server ({type(problem).__name__}).", at)
