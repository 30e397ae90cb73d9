"""Pages of log lines from the store.

The time of a line is its key. A page is read through windows that widen (an hour, six, a day, a week, all), each
beginning where the one before it ended: on a large store this is many times faster than one query over all. Lines
that an index finds are few: then fewer and wider windows are faster, and one for those of a request.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence

from varvel.logs.rules import LogQuery, line
from varvel.telemetry.model import LogRow, TelemetryStore

_HOUR = 3_600_000_000
_WINDOWS = (_HOUR, 6 * _HOUR, 24 * _HOUR, 168 * _HOUR)
_WIDE = (24 * _HOUR, 96 * _HOUR)
_COLUMNS = "ts, owner, app, revision, job_id, request_id, endpoint, level, source, message, labels"
PAGE = 1000


def windows(since: int, until: int, widths: Sequence[int] = _WINDOWS) -> Iterator[tuple[int, int]]:
    """Stretches [from, to) that cover [since, until), newest first: `widths` back from `until`, then the rest."""
    newest = until
    for width in widths:
        oldest = max(since, until - width)
        if oldest < newest:
            yield oldest, newest
        newest = min(newest, oldest)
    if since < newest:
        yield since, newest


def widths(query: LogQuery) -> Sequence[int]:
    """How far back the windows of a query reach."""
    if query.request_id is not None or any(test.of_request for test in query.labels):
        return ()
    return _WIDE if query.job_id is not None or any(test.indexed for test in query.labels) else _WINDOWS


async def newest_first(store: TelemetryStore, query: LogQuery, since: int, until: int, limit: int) -> list[LogRow]:
    """At most `limit` lines of [since, until) in microseconds, the newest first. Raises `TelemetryUnavailable`."""
    found: list[LogRow] = []
    for low, high in windows(since, until, widths(query)):
        found += await _select(store, query, low, high, "DESC", limit - len(found))
        if len(found) >= limit:
            break
    return found


async def oldest_first(store: TelemetryStore, query: LogQuery, since: int, until: int) -> AsyncIterator[LogRow]:
    """Every line of [since, until), the oldest first, a page in memory at a time. Raises `TelemetryUnavailable`."""
    width = _HOUR
    while since < until:
        high = min(until, since + width)
        page = await _select(store, query, since, high, "ASC", PAGE)
        for row in page:
            yield row
        full = len(page) == PAGE
        since = page[-1].ts + 1 if full else high
        width = max(_HOUR, width // 4) if full else width * 4


async def _select(store: TelemetryStore, query: LogQuery, low: int, high: int, order: str, limit: int) -> list[LogRow]:
    condition, params = query.sql()
    sql = (
        f"SELECT {_COLUMNS} FROM logs WHERE ts >= {{low:Int64}} AND ts < {{high:Int64}} AND {condition} "  # noqa: S608
        f"ORDER BY ts {order} LIMIT {{limit:UInt32}}"
    )
    rows = await store.select(sql, {**params, "low": low, "high": high, "limit": limit})
    return [line(row) for row in rows]
