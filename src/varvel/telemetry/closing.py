"""Closes stretches of time: computes once, from all rows, what analytics and lists of requests show of them.

Every UTC day that is over is closed: figures of each of its hours and of the day, and its longest requests. Buckets
of other calendars (days in Berlin, weeks, months) are closed when somebody has asked for them. Which are closed is
told by `closed.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from varvel.telemetry.client import StoreClient
from varvel.telemetry.closed import DAY, HOUR, Size, closed_spans, day_sizes, size_of

SETTLED = 600_000_000
"""Microseconds after its end before a day is closed: most of what is late has come by then."""
MOST_ROWS = 20_000_000
"""Requests of a stretch above which it stays open: exact percentiles of more would take too much memory."""
ROWS_AT_ONCE = 2_000_000
"""Requests of stretches that are computed in one statement."""
LONGEST = (100, 1000)
"""Longest requests that are kept of each UTC day and endpoint: one in twenty, but so many at least and at most."""
CLOSE_TIMEOUT = 300.0
REPLACED_AFTER = HOUR
"""What a later closing has replaced is kept this long: a query that began before may still read it."""

# Nearest rank: see `platform/analytics_sql.py`, whose levels these are.
_FIGURES = """
INSERT INTO requests_closed
SELECT row.*, billed.total
FROM (
    SELECT
        owner, {step:String} AS step, endpoint_id,
        roundDown(intDiv(ended_at, 1000000), {edges:Array(Int64)}) * 1000000 AS since,
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
    WHERE ended_at >= {first:Int64} AND ended_at < {end:Int64}
    GROUP BY owner, endpoint_id, since
) AS row
LEFT JOIN (
    SELECT
        owner, endpoint_id,
        roundDown(intDiv(ended_at, 1000000), {edges:Array(Int64)}) * 1000000 AS since,
        sum(billable_duration) AS total
    FROM billing
    WHERE ended_at >= {first:Int64} AND ended_at < {end:Int64}
    GROUP BY owner, endpoint_id, since
) AS billed
ON row.owner = billed.owner AND row.endpoint_id = billed.endpoint_id AND row.since = billed.since"""
# The duration that an endpoint's last place takes is found first, so that only the rows above it are sorted.
_LONGEST = f"""
INSERT INTO requests_longest
SELECT
    owner, endpoint_id, {{first:Int64}} AS day, {{version:Int64}} AS version,
    arrayJoin(if(place = places AND total > places, [place, 0], [place])),
    request_id, started_at, sent_at, ended_at, status_code, duration, runner_id
FROM (
    SELECT
        requests.*, least.total AS total, least.places AS places,
        row_number() OVER (
            PARTITION BY owner, endpoint_id ORDER BY duration DESC, ended_at DESC, request_id DESC
        ) AS place
    FROM requests
    INNER JOIN (
        SELECT
            owner, endpoint_id, count() AS total,
            least({LONGEST[1]}, greatest({LONGEST[0]}, intDiv(total, 20))) AS places,
            -arrayElement(groupArraySorted({LONGEST[1]})(-requests.duration), least(places, total)) AS duration
        FROM requests
        WHERE ended_at >= {{first:Int64}} AND ended_at < {{end:Int64}}
        GROUP BY owner, endpoint_id
    ) AS least
    ON requests.owner = least.owner AND requests.endpoint_id = least.endpoint_id
    WHERE ended_at >= {{first:Int64}} AND ended_at < {{end:Int64}} AND requests.duration >= least.duration
)
WHERE place <= places"""  # noqa: S608 (numbers of ours)
_REPLACED = (
    "version < {before:Int64} AND (day, version) NOT IN "
    "(SELECT since, max(version) FROM closed_spans WHERE step = 'day' GROUP BY since)"
)
_STEPS = "SELECT step, max(version) AS newest FROM closed_spans WHERE step != 'day' GROUP BY step ORDER BY newest"


@dataclass(frozen=True, slots=True)
class _Stretch:
    since: int
    until: int
    size: Size


def is_due(until: int, now: float) -> bool:
    """Whether the UTC days up to `until` (microseconds) are over, and what is late has had time to come."""
    return -(-until // DAY) * DAY <= round(now * 1_000_000) - SETTLED


async def close_days(store: StoreClient, now: float) -> list[int]:
    """Close every UTC day that is over and not closed, or not any more; gives them (first microseconds)."""
    end = (round(now * 1_000_000) - SETTLED) // DAY * DAY
    sizes = {day: size for day, size in (await day_sizes(store, 0, end)).items() if day < end}
    closed = await closed_spans(store, "day", min(sizes, default=end), end)
    due = [day for day in sorted(sizes) if day not in closed and 0 < sizes[day].requests <= MOST_ROWS]
    if due:
        version = await _version(store, now)
        for day in due:
            # The sizes were taken before the rows are read: what comes in between leaves the day open.
            stretch = _Stretch(day, day + DAY, sizes[day])
            hours = [_Stretch(hour, hour + HOUR, Size()) for hour in range(day, day + DAY, HOUR)]
            await _compute(store, "hour", hours, version)
            await _compute(store, "day", [stretch], version)
            bounds = {"first": day, "end": day + DAY, "version": version}
            await store.execute(_LONGEST, bounds, timeout=CLOSE_TIMEOUT)
            await _register(store, "day", [stretch], version)
    return due


async def close_asked(
    store: StoreClient, step: str, asked: Mapping[int, int], now: float, most_steps: int
) -> list[int]:
    """Close the stretches (first microsecond and end) of a calendar that are over; gives their beginnings.

    At most `most_steps` calendars are kept: the one that was longest without a new stretch makes room.
    """
    due = {since: until for since, until in asked.items() if since < until and is_due(until, now)}
    if not due or most_steps < 1:
        return []
    sizes = await day_sizes(store, min(due), max(due.values()))
    closed = await closed_spans(store, step, min(due), max(due) + 1)
    open_still = [
        _Stretch(since, until, size_of(sizes, since, until))
        for since, until in sorted(due.items())
        if since not in closed or closed[since].until != until
    ]
    stretches = [stretch for stretch in open_still if stretch.size.requests <= MOST_ROWS]
    if stretches:
        await _make_room(store, step, most_steps)
        version = await _version(store, now)
        for batch in _batches(stretches):
            await _compute(store, step, batch, version)
            await _register(store, step, batch, version)
    return [stretch.since for stretch in stretches]


async def drop_replaced(store: StoreClient, now: float) -> None:
    """Delete lists of longest requests that a later closing of their day has replaced."""
    before = {"before": round(now * 1_000_000) - REPLACED_AFTER}
    [found] = await store.select(f"SELECT count() AS n FROM requests_longest WHERE {_REPLACED}", before)  # noqa: S608
    if found["n"]:
        await store.execute(f"DELETE FROM requests_longest WHERE {_REPLACED}", before, timeout=CLOSE_TIMEOUT)  # noqa: S608


async def _version(store: StoreClient, now: float) -> int:
    [newest] = await store.select("SELECT max(version) AS version FROM closed_spans")
    return int(max(round(now * 1_000_000), newest["version"] + 1))  # a clock may be set back


async def _compute(store: StoreClient, step: str, stretches: list[_Stretch], version: int) -> None:
    """The figures of stretches that follow each other without a gap."""
    params = {
        "step": step,
        "edges": [stretch.since // 1_000_000 for stretch in stretches],
        "first": stretches[0].since,
        "end": stretches[-1].until,
        "version": version,
    }
    await store.execute(_FIGURES, params, timeout=CLOSE_TIMEOUT)


async def _register(store: StoreClient, step: str, stretches: list[_Stretch], version: int) -> None:
    rows = ", ".join(
        f"({{step:String}}, {one.since}, {one.until}, {one.size.requests}, {one.size.billing}, {version})"
        for one in stretches
    )
    await store.execute(f"INSERT INTO closed_spans SELECT * FROM VALUES ({_COLUMNS}, {rows})", {"step": step})  # noqa: S608


_COLUMNS = "'step String, since Int64, until Int64, requests UInt64, billing UInt64, version Int64'"


def _batches(stretches: list[_Stretch]) -> Iterator[list[_Stretch]]:
    """Neighbours together, as long as they have few rows."""
    batch: list[_Stretch] = []
    rows = 0
    for stretch in stretches:
        if batch and (batch[-1].until != stretch.since or rows + stretch.size.requests > ROWS_AT_ONCE):
            yield batch
            batch, rows = [], 0
        batch.append(stretch)
        rows += stretch.size.requests
    yield batch


async def _make_room(store: StoreClient, step: str, most_steps: int) -> None:
    there = [row["step"] for row in await store.select(_STEPS)]
    if step in there:
        return
    for old in there[: max(0, len(there) - most_steps + 1)]:
        for table in ("closed_spans", "requests_closed"):
            # First the registry: figures without an entry are never read.
            await store.execute(f"DELETE FROM {table} WHERE step = {{step:String}}", {"step": old})  # noqa: S608
