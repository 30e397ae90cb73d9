"""Which stretches of time are closed: their figures stand in the store and need no rows any more.

A stretch is closed while the UTC days that it touches have as many requests and billing events as when its figures
were computed (`closing.py`). One row that comes late opens it again at once, and so does a day that retention drops.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

HOUR = 3_600_000_000
DAY = 24 * HOUR


class Selects(Protocol):
    """What asks the store."""

    async def select(
        self, sql: str, params: Mapping[str, Any] | None = None, *, timeout: float | None = None
    ) -> list[dict[str, Any]]:
        """Rows of a query."""
        ...


@dataclass(frozen=True, slots=True)
class Closed:
    """A closed stretch: where it ends (microseconds), and the `version` of its rows; 0 when it has none at all."""

    until: int
    version: int


@dataclass(frozen=True, slots=True)
class Size:
    """How many rows there are."""

    requests: int = 0
    billing: int = 0


_SIZES = """
SELECT partition_id, sumIf(rows, table = 'requests') AS requests, sumIf(rows, table = 'billing') AS billing
FROM system.parts
WHERE active AND database = currentDatabase() AND table IN ('requests', 'billing')
    AND partition_id >= {first:String} AND partition_id <= {last:String}
GROUP BY partition_id"""
_REGISTERED = """
SELECT since, argMax(until, version) AS ends, argMax(requests, version) AS all_requests,
    argMax(billing, version) AS all_billing, max(version) AS newest
FROM closed_spans WHERE step = {step:String} AND since >= {first:Int64} AND since < {end:Int64}
GROUP BY since"""


async def day_sizes(store: Selects, first: int, end: int) -> dict[int, Size]:
    """The rows of each UTC day (its first microsecond) that [first, end) touches; a day without any is left out."""
    names = {"first": _partition(first), "last": _partition(max(first, end - 1))}
    return {
        _first(row["partition_id"]): Size(row["requests"], row["billing"]) for row in await store.select(_SIZES, names)
    }


def size_of(sizes: Mapping[int, Size], since: int, until: int) -> Size:
    """The rows of all UTC days that a stretch touches."""
    days = [sizes[day] for day in range(since // DAY * DAY, until, DAY) if day in sizes]
    return Size(sum(day.requests for day in days), sum(day.billing for day in days))


async def closed_spans(store: Selects, step: str, first: int, end: int) -> dict[int, Closed]:
    """The closed stretches of a step that begin in [first, end), by their first microsecond.

    `step` is `hour` or `day` for those of UTC, else a timeframe and a zone: `day Europe/Berlin`. A UTC day of which
    there are no rows is closed.
    """
    whole = {"first": first // DAY * DAY, "end": end}
    of_days = step in ("hour", "day")
    registered, sizes = await asyncio.gather(
        store.select(_REGISTERED, {"step": "day" if of_days else step, **whole}),
        # A month that begins before `end` goes on behind it.
        day_sizes(store, whole["first"], end + 32 * DAY),
    )
    found = {
        row["since"]: Closed(row["ends"], row["newest"])
        for row in registered
        if Size(row["all_requests"], row["all_billing"]) == size_of(sizes, row["since"], row["ends"])
    }
    if not of_days:
        return found
    for day in range(whole["first"], end, DAY):
        if day not in sizes:
            found[day] = Closed(day + DAY, 0)
    if step == "day":
        return found
    return {
        hour: Closed(hour + HOUR, day.version) for since, day in found.items() for hour in range(since, day.until, HOUR)
    }


def _partition(at: int) -> str:
    return f"{datetime.fromtimestamp(at // 1_000_000, UTC):%Y%m%d}"


def _first(partition: str) -> int:
    return int(datetime.strptime(partition, "%Y%m%d").replace(tzinfo=UTC).timestamp()) * 1_000_000
