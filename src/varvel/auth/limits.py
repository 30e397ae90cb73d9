"""How many calls a minute each key may make."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, floor

MINUTE = 60.0
_MANY = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether a call may go on, and what the caller is told about it. Times in seconds."""

    allowed: bool
    limit: int
    remaining: int
    reset: float
    """Until the whole allowance is there again."""
    retry_after: float = 0.0

    def headers(self) -> dict[str, str]:
        """`RateLimit-*`, and `Retry-After` for a refused call."""
        told = {
            "ratelimit-limit": str(self.limit),
            "ratelimit-remaining": str(self.remaining),
            "ratelimit-reset": str(ceil(self.reset)),
        }
        return told if self.allowed else {**told, "retry-after": str(max(1, ceil(self.retry_after)))}


def judge(limit: int, due: float, now: float) -> tuple[Verdict, float]:
    """Judge one call and give the new `due` (generic cell rate algorithm).

    `due` is when the allowance would be whole again; a call puts it off by its share of the minute. A clock that
    was set back cannot lock a key out for more than a minute.
    """
    share = MINUTE / limit
    begin = min(max(due, now), now + MINUTE)
    after = begin + share
    # Sums of shares carry rounding errors; a call is not refused for a nanosecond.
    spare = MINUTE - (after - now) + 1e-6
    if spare < 0:
        return Verdict(allowed=False, limit=limit, remaining=0, reset=begin - now, retry_after=-spare), begin
    return Verdict(allowed=True, limit=limit, remaining=floor(spare / share), reset=after - now), after


class RateLimits:
    """The allowances of all keys, in memory. A limit of 0 lets everything pass."""

    def __init__(self, per_minute: int) -> None:
        self._limit = per_minute
        self._due: dict[str, float] = {}

    def take(self, name: str, now: float) -> Verdict | None:
        """Count one call by `name` (a key id or an address); None when there is no limit."""
        if self._limit <= 0:
            return None
        if len(self._due) > _MANY:
            self._forget(lambda due: due <= now)
        verdict, self._due[name] = judge(self._limit, self._due.get(name, now), now)
        return verdict

    def _forget(self, over: Callable[[float], bool]) -> None:
        self._due = {name: due for name, due in self._due.items() if not over(due)}
