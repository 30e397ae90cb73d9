"""Closes days: computes what analytics shows of each hour and endpoint of a UTC day that is over, once and exactly.

A closed day is trusted only while the store has as many requests and billing events of that day as when it was
closed. One row that comes late opens it again, for readers at once, until the next round closes it anew.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from varvel.telemetry.client import Row, StoreClient

DAY = 86_400_000_000
SETTLED = 600_000_000
"""Microseconds after its end before a day is closed: most of what is late has come by then."""
MOST_ROWS = 20_000_000
"""Requests of a day above which it stays open: exact percentiles of more would take too much memory."""
CLOSE_TIMEOUT = 300.0

_SIZES = """
    SELECT partition_id, sumIf(rows, table = 'requests') AS requests, sumIf(rows, table = 'billing') AS billing
    FROM system.parts
    WHERE active AND database = currentDatabase() AND table IN ('requests', 'billing')
    GROUP BY partition_id"""
_CLOSED = f"""
    SELECT closed.day AS day, closed.requests AS requests FROM (
        SELECT day, argMax(requests, version) AS requests, argMax(billing, version) AS billing
        FROM closed_days WHERE day >= {{first:Int64}} AND day < {{end:Int64}} GROUP BY day
    ) AS closed
    INNER JOIN ({_SIZES}) AS there
    ON toString(toYYYYMMDD(fromUnixTimestamp64Micro(closed.day, 'UTC'))) = there.partition_id
    WHERE closed.requests = there.requests AND closed.billing = there.billing"""  # noqa: S608 (no values)

# Nearest rank: see `platform/analytics_sql.py`, whose levels these are.
_CLOSE = """
INSERT INTO requests_closed
SELECT row.*, billed.total
FROM (
    SELECT
        owner, tupleElement(cut, 1) AS step, endpoint_id,
        intDiv(ended_at, tupleElement(cut, 2)) * tupleElement(cut, 2) AS since,
        {version:Int64} AS version,
        count() AS request_count,
        countIf(status = 'success'),
        countIf(status = 'user_error'),
        countIf(status = 'error'),
        countIf(error_group = 'startup'),
        countIf(error_group = 'connection'),
        countIf(error_group = 'timeout'),
        countIf(error_group = 'runtime'),
        countIf(cold_boot > 1),
        quantilesExact(0.2499999999, 0.4999999999, 0.7499999999, 0.8999999999, 0.9499999999, 0.9899999999)(duration),
        quantilesExact(0.4999999999, 0.7499999999, 0.8999999999, 0.9499999999, 0.9899999999)(prepare_duration),
        quantilesExactIf(0.4999999999, 0.7499999999, 0.8999999999)(cold_boot, cold_boot > 1)
    FROM requests
    ARRAY JOIN [('hour', 3600000000), ('day', 86400000000)] AS cut
    WHERE ended_at >= {first:Int64} AND ended_at < {end:Int64}
    GROUP BY owner, step, endpoint_id, since
) AS row
LEFT JOIN (
    SELECT
        owner, tupleElement(cut, 1) AS step, endpoint_id,
        intDiv(ended_at, tupleElement(cut, 2)) * tupleElement(cut, 2) AS since,
        sum(billable_duration) AS total
    FROM billing
    ARRAY JOIN [('hour', 3600000000), ('day', 86400000000)] AS cut
    WHERE ended_at >= {first:Int64} AND ended_at < {end:Int64}
    GROUP BY owner, step, endpoint_id, since
) AS billed
ON row.owner = billed.owner AND row.step = billed.step AND row.endpoint_id = billed.endpoint_id
    AND row.since = billed.since"""


def closed_days(first: int, end: int) -> tuple[str, dict[str, Any]]:
    """The statement that gives `day` (its first microsecond) and `requests` of each closed day in [first, end)."""
    return _CLOSED, {"first": first // DAY * DAY, "end": end}


async def close_days(store: StoreClient, now: float) -> list[int]:
    """Close every day that is over and not closed, or not any more; gives them (first microseconds).

    Call it from one task at a time. `now` in seconds.
    """
    last = (round(now * 1_000_000) - SETTLED) // DAY * DAY
    sizes = {_first(row["partition_id"]): row for row in await store.select(_SIZES)}
    closed = {row["day"] for row in await store.select(*closed_days(0, last))}
    due = [day for day in sorted(sizes) if day < last and day not in closed and 0 < sizes[day]["requests"] <= MOST_ROWS]
    if due:
        [newest] = await store.select("SELECT max(version) AS version FROM closed_days")
        version = max(round(now * 1_000_000), newest["version"] + 1)  # a clock may be set back
        for day in due:
            await _close(store, day, sizes[day], version)
    return due


async def _close(store: StoreClient, day: int, size: Row, version: int) -> None:
    # The sizes were taken before the rows are read: what comes in between leaves the day open.
    await store.execute(_CLOSE, {"first": day, "end": day + DAY, "version": version}, timeout=CLOSE_TIMEOUT)
    await store.execute(
        "INSERT INTO closed_days SELECT {day:Int64}, {requests:UInt64}, {billing:UInt64}, {version:Int64}",
        {"day": day, "requests": size["requests"], "billing": size["billing"], "version": version},
    )


def _first(partition: str) -> int:
    return int(datetime.strptime(partition, "%Y%m%d").replace(tzinfo=UTC).timestamp()) * 1_000_000
